"""Words and tags: from files to batches, entities as seqeval counts them, and the argument that each error names."""

import json

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qat_lightning.data.token_classification.datamodule import TokenClassificationData
from qat_lightning.data.token_classification.metric import EntityScore
from tests.data.conftest import WORDS

CONLL = """-DOCSTART- -X- -X- O

the DT B-NP O
cat NN I-NP B-PER
sat VB B-VP O

a DT B-NP O
dog NN I-NP B-PER
"""


@pytest.fixture
def tagged(tokenizer, tmp_path):
    """A TokenClassificationData on `tmp_path`, any argument changed."""

    def make(**changed):
        arguments = {"path": str(tmp_path), "tokenizer": tokenizer, "max_length": 8, "batch_size": 2, "num_labels": 2,
                     "metrics": {"f1": EntityScore()}, "metric": "f1"}  # fmt: skip
        return TokenClassificationData(**(arguments | changed))

    return make


def lines(*rows):
    return "\n".join(json.dumps({"tokens": words, "ner_tags": tags}) for words, tags in rows)


def test_a_word_has_its_label_at_its_first_token_and_cut_words_are_counted(tagged, write):
    write(CONLL, suffix="txt")
    batch = tagged().example_batch(2)
    assert batch["input_ids"][1].tolist() == [2, WORDS.index("a"), WORDS.index("dog"), 3, 0]
    assert batch["labels"].tolist() == [[-100, 1, 0, 1, -100], [-100, 1, 0, -100, -100]]
    cut = tagged(max_length=4)
    cut.load()
    assert cut.example_batch(1)["labels"].tolist() == [[-100, 1, 0, -100]]
    assert sum(note.startswith("1 of 5 words of the ") for note in cut.notes) == 2


def test_other_tokens_of_a_word_have_no_label(tagged, write, tmp_path):
    pieces = {"[PAD]": 0, "[UNK]": 1, "ann": 2, "##a": 3, "ran": 4}
    model = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        tmp_path / "own"
    )
    write(lines((["anna", "ran"], ["B-PER", "O"])), suffix="jsonl")
    batch = tagged(tokenizer=str(tmp_path / "own")).example_batch(1)
    assert (batch["input_ids"].tolist(), batch["labels"].tolist()) == ([[2, 3, 4]], [[0, -100, 1]])


def test_a_byte_level_tokenizer_reads_words_after_a_space(tagged, write, tmp_path):
    model = Tokenizer(models.BPE({"[PAD]": 0, "[UNK]": 1, "Ġ": 2, "a": 3, "Ġa": 4}, [("Ġ", "a")], unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=model, pad_token="[PAD]").save_pretrained(tmp_path / "own")
    write(lines((["a", "a"], ["B-PER", "O"])), suffix="jsonl")
    assert tagged(tokenizer=str(tmp_path / "own")).example_batch(1)["input_ids"].tolist() == [[4, 4]]


@pytest.mark.parametrize("form", ["names", "numbers", "class labels"])
def test_tags_of_columns_have_the_numbers_of_their_names(form, tagged, write, tmp_path):
    rows = [(["the", "cat"], ["O", "B-PER"]), (["a"], ["O"])]
    names, wanted = ["O", "B-PER"], [[-100, 0, 1, -100], [-100, 0, -100, -100]]
    if form == "class labels":
        features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
        columns = {"tokens": [words for words, _ in rows], "ner_tags": [tags for _, tags in rows]}
        for split in ("train", "validation"):
            Dataset.from_dict(columns, features).to_parquet(tmp_path / f"{split}.parquet")
        data = tagged()
    else:
        numbered = [(words, [names.index(tag) for tag in tags] if form == "numbers" else tags) for words, tags in rows]
        write(lines(*numbered), suffix="jsonl")
        data = tagged(label_names=names)
    assert data.example_batch(2)["labels"].tolist() == wanted
    assert data.metrics["f1"].names == data.label_names == names


@pytest.mark.parametrize(
    ("text", "suffix", "changed", "words"),
    [
        ("the O\ncat\n", "txt", {"conll_columns": [0, 1]}, r"line 2 of .* has 1 columns.*conll_columns"),
        (lines((["the", "cat"], ["O"])), "jsonl", {}, r"row 0 of the train split has 2 words.*tags_column"),
        (lines((["the", "cat"], ["O", "B-X"]), (["a"], ["I-X"])), "jsonl", {}, r"num_labels=2.*3 classes"),
        (lines((["the", "cat"], ["O", "B-X"])), "jsonl", {"label_names": ["O", "B-Y"]}, r"'B-X'.*label_names"),
        (lines((["the", "cat"], [0, 7])), "jsonl", {}, r"word 1 of the train split has label 7"),
        (lines(("the cat", ["O", "O"])), "jsonl", {}, r"row 0 of the train split.*words_column"),
        (CONLL, "txt", {"conll_columns": [0]}, r"conll_columns=\[0\]"),
    ],
)  # fmt: skip
def test_errors_name_the_row_and_the_argument(text, suffix, changed, words, tagged, write):
    write(text, suffix=suffix)
    with pytest.raises(ValueError, match=words):
        tagged(**changed).load()


# Right and given tags of each sentence; precision, recall and F1 of seqeval 1.2.2
GOLDEN = [
    (["B-PER I-PER O B-LOC"], ["B-PER I-PER O O"], 1.0, 0.5, 0.666667),
    (["B-PER I-PER O", "B-LOC I-LOC"], ["B-PER O O", "I-LOC I-LOC"], 0.5, 0.5, 0.5),
    (["I-PER I-PER B-PER O I-LOC"], ["I-PER B-PER I-PER O B-LOC"], 0.333333, 0.333333, 0.333333),
    (["B-PER E-PER S-LOC O I-PER E-PER I-PER"], ["B-PER E-PER B-LOC E-PER I-PER E-PER E-PER"], 0.8, 1.0, 0.888889),
    (["O O"], ["O B-PER"], 0.0, 0.0, 0.0),
    (["I-LOC I-LOC O S-PER S-LOC E-LOC I-LOC S-PER E-LOC B-LOC E-PER S-LOC",
      "I-PER S-PER I-PER B-PER S-PER S-LOC I-PER S-PER B-PER B-PER B-LOC E-LOC"],
     ["S-LOC B-PER B-LOC I-LOC B-LOC E-PER S-LOC E-LOC E-LOC S-LOC S-PER O",
      "S-LOC O B-PER I-LOC O E-LOC B-LOC E-PER B-LOC B-PER E-PER E-PER"], 0.421053, 0.380952, 0.4),
]  # fmt: skip


@pytest.mark.parametrize(("right", "given", "precision", "recall", "f1"), GOLDEN)
def test_scores_of_entities_are_those_of_seqeval(right, given, precision, recall, f1):
    names = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("PER", "LOC"))]
    for score, value in {"precision": precision, "recall": recall, "f1": f1}.items():
        metric = EntityScore(score)
        metric.names = names
        for expected, predicted in zip(right, given, strict=True):
            numbers = [[names.index(tag) for tag in tags.split()] for tags in (predicted, expected)]
            # a token without a label between the words, which the model answers with an entity
            padded = [[*row[:1], extra, *row[1:]] for row, extra in zip(numbers, (1, -100), strict=True)]
            metric.update(*(torch.tensor([row]) for row in padded))
        assert float(metric.compute()) == pytest.approx(value, abs=1e-6)
