"""Check the table of a model family on a random tiny model."""
