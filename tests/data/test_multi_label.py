"""Texts with any number of labels: every way to write them, the order of the labels, and what each error names."""

import json

import pytest
import torch
from torchmetrics.classification import MultilabelF1Score

from qat_lightning.data import MultiLabelData

TEXTS = ["the cat sat", "a dog ran", "the film is good", "the film is bad"]
ROWS = [["animal"], ["animal", "motion"], [], ["motion"]]


@pytest.fixture
def texts(tokenizer, tmp_path):
    def make(**changed):
        arguments = {
            "path": str(tmp_path),
            "text_columns": ["text"],
            "tokenizer": tokenizer,
            "batch_size": 4,
            "max_length": 8,
            "num_labels": 2,
            "metrics": {"f1": MultilabelF1Score(2, average="macro")},
            "metric": "f1",
        }
        return MultiLabelData(**(arguments | changed))

    return make


def lines(rows, **columns):
    return "".join(
        json.dumps({"text": text} | {name: values[n] for name, values in columns.items()}) + "\n" for n, text in rows
    )


def numbered(labels=ROWS, **columns):
    return lines(list(enumerate(TEXTS)), labels=labels, **columns)


@pytest.mark.parametrize(
    ("train", "suffix", "given"),
    [
        (numbered(), "jsonl", {}),
        (numbered([";".join(row) for row in ROWS]), "jsonl", {"separator": ";"}),
        ('text,labels\nthe cat sat,animal\na dog ran,"motion, animal"\nthe film is good,""\nthe film is bad,motion\n', "csv", {}),
        (numbered(animal=[1, 1, 0, 0], motion=[0, 1, 0, 1]), "jsonl", {"label_columns": ["animal", "motion"]}),
        (numbered([[int(label == "motion") for label in row] for row in ROWS]), "jsonl", {"label_names": ["0", "1"]}),
    ],
)  # fmt: skip
def test_labels_are_zeros_and_ones(texts, write, train, suffix, given):
    write(train, suffix=suffix)
    data = texts(**given)
    batch = data.example_batch(4)
    assert batch["labels"].tolist() == [[1, 0], [1, 1], [0, 0], [0, 1]]
    assert batch["labels"].dtype == torch.float32
    assert data.label_names == given.get("label_names", ["animal", "motion"])
    probabilities, labels = data.predict([torch.tensor([[0.0, 2.0]])], {"labels": batch["labels"][:1]})
    assert probabilities[0].tolist() == pytest.approx([0.5, 0.8807971])
    assert labels.tolist() == [[1, 0]]


def test_order_of_labels_is_that_of_the_user_or_of_the_model(texts, write):
    write(numbered(), suffix="jsonl")
    assert texts(label_names=["motion", "animal"]).example_batch(2)["labels"].tolist() == [[0, 1], [1, 1]]
    data = texts(num_labels=3, metrics={"f1": MultilabelF1Score(3)})
    data.model_names = ["other", "motion", "animal"]
    assert data.example_batch(1)["labels"].tolist() == [[0, 0, 1]]


def test_rows_without_labels_are_left_out_and_counted(texts, write):
    write(numbered([["animal"], None, ["motion"], []]), suffix="jsonl")
    data = texts()
    data.load()
    assert len(data.train_rows) == 3
    assert any("1 of 4 rows of the train split have no labels" in note for note in data.notes)


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        (ROWS, {"num_labels": 3, "metrics": {"f1": MultilabelF1Score(3)}}, r"num_labels=3, .* has 2 labels .*num_labels=2"),
        (ROWS, {"label_names": ["animal", "thing"]}, r"label_names"),
        ([1, 2, 3, 4], {}, r"labels 1, which are neither a list nor a text"),
        (ROWS, {"label_columns": ["text", "labels"]}, r"not 0 or 1: .*label_columns"),
        (ROWS, {"label_columns": ["labels"]}, r"must have num_labels=2 columns"),
        (ROWS, {"label_columns": ["one", "two"]}, r"no column 'one'.*label_columns"),
        (ROWS, {"num_labels": 1}, r"num_labels=1 must be 2 or more"),
    ],
)  # fmt: skip
def test_wrong_labels_are_refused_with_the_argument(texts, write, rows, given, message):
    write(numbered(rows), suffix="jsonl")
    with pytest.raises(ValueError, match=message):
        texts(**given).load()


def test_label_of_validation_alone_is_refused(texts, write):
    write(numbered(), numbered([["thing"], [], [], []]), suffix="jsonl")
    with pytest.raises(ValueError, match=r"validation split has the label 'thing'.*label_names"):
        texts().load()
