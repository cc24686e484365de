"""Question answering in the manner of SQuAD."""
