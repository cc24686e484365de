"""From labels as they are written to the numbers of classes: whose order holds, what has no label, what is refused."""

import pytest
from datasets import ClassLabel, Dataset, Features

from qat_lightning.data.labels import LabelColumn, read_labels

MNLI = ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]
SNLI = ["entailment", "neutral", "contradiction"]
TWELVE = [str(number) for number in range(12)]


def split(labels, names=None):
    features = Features({"label": ClassLabel(names=names)}) if names else None
    return Dataset.from_dict({"label": labels}, features=features)


def read(train, validation=None, names=None, num_labels=2, wanted=None, **column):
    splits = {"train": split(train, names), "validation": split(train if validation is None else validation, names)}
    return read_labels(splits, LabelColumn("label", num_labels, names=wanted, **column))


@pytest.mark.parametrize(
    ("labels", "changed", "numbers", "names"),
    [
        # whole numbers as text are themselves: sorted as words 10 and 11 would come before 2
        (TWELVE, {"num_labels": 12}, [*range(12)], TWELVE),
        (["1", "2", "10"], {"num_labels": 3}, [0, 1, 2], ["1", "2", "10"]),
        (["0", "2"], {"num_labels": 3}, [0, 2], ["0", "1", "2"]),
        (["0.0", "10.0", "2.0"], {"num_labels": 11}, [0, 10, 2], None),
        (["1.0", "2.0"], {"model_names": ["2", "1"]}, [1, 0], ["2", "1"]),
        (["LABEL_0", "LABEL_10", "LABEL_2"], {"num_labels": 11}, [0, 10, 2], None),
        (["-5", "10", "2"], {"num_labels": 3}, [0, 2, 1], ["-5", "2", "10"]),
        ([0.0, 1.0], {}, [0, 1], None),
        ([True, False], {}, [1, 0], ["False", "True"]),
        # the model's order
        (["entailment", "neutral", "contradiction"], {"model_names": MNLI, "num_labels": 3}, [2, 1, 0], MNLI),
        ([0, 1, 2], {"names": SNLI, "model_names": MNLI, "num_labels": 3}, [2, 1, 0], MNLI),
        (["not entailment", "Entailment "], {"model_names": ["entailment", "not_entailment"]}, [1, 0],
         ["entailment", "not_entailment"]),
        (["POS", "pos", "Neg"], {"model_names": ["pos", "neg"]}, [0, 0, 1], ["pos", "neg"]),
        (["US", "us"], {"model_names": ["us", "US"]}, [1, 0], ["us", "US"]),
        (["cat", "owl"], {"model_names": ["owl", "dog", "cat"], "num_labels": 3}, [2, 0], ["owl", "dog", "cat"]),
        (["2", "1"], {"model_names": ["1", "2"]}, [1, 0], ["1", "2"]),
        ([2, 1], {"model_names": ["1", "2"]}, [1, 0], ["1", "2"]),
        ([0, 1], {"model_names": ["1", "0"]}, [1, 0], ["1", "0"]),
        (["true", "false"], {"model_names": ["TRUE", "FALSE"]}, [0, 1], ["TRUE", "FALSE"]),
        (["-", "+"], {"model_names": ["+", "-"]}, [1, 0], ["+", "-"]),
        # numbers are themselves beside a model's names; words that it does not know have their own order
        ([1, 0], {"model_names": ["cat", "dog"]}, [1, 0], None),
        (["1", "0"], {"model_names": ["cat", "dog"]}, [1, 0], ["0", "1"]),
        (["good", "bad"], {"model_names": ["positive", "negative"]}, [1, 0], ["bad", "good"]),
        # the user's order comes first
        (["yes", "no"], {"wanted": ["yes", "no"], "model_names": ["no", "yes"]}, [0, 1], ["yes", "no"]),
        ([1, 0], {"wanted": ["yes", "no"]}, [1, 0], ["yes", "no"]),
    ],
)  # fmt: skip
def test_numbers_and_names_of_classes(labels, changed, numbers, names):
    found = read(labels, **changed)
    assert found.splits["train"] == found.splits["validation"] == numbers
    assert names is None or found.names == names


@pytest.mark.parametrize(
    ("train", "validation", "numbers"),
    [
        (["0", "1", "-"], [1, 0], [1, 0]),  # the column of a csv file is read as text where a word is in it
        ([1, 0], ["0", "1"], [0, 1]),
        ([0, 1], ["1.0", "0"], [1, 0]),
        (["No", "Yes"], ["yes", "NO", " Yes"], [1, 0, 1]),
    ],
)
def test_splits_may_write_the_same_class_differently(train, validation, numbers):
    assert read(train, validation).splits["validation"] == numbers


@pytest.mark.parametrize(
    ("labels", "changed", "numbers"),
    [
        (["yes", "-", "no", ""], {}, [1, None, 0, None]),
        (["yes", None, "no"], {}, [1, None, 0]),
        ([0, -1, 1], {}, [0, None, 1]),
        ([0.0, float("nan"), 1.0], {}, [0, None, 1]),
        ([0, -1, 1], {"names": ["no", "yes"]}, [0, None, 1]),
        ([0, 1, 2], {"names": ["-", "no", "yes"]}, [None, 0, 1]),
        (["no", "?", "yes"], {"unlabelled": ["?"]}, [0, None, 1]),
        ([0, 9, 1], {"unlabelled": [9]}, [0, None, 1]),
        ([0.5, None, float("nan"), -1.0], {"num_labels": 1}, [0.5, None, None, -1.0]),
        (["0.5", "-", "2"], {"num_labels": 1}, [0.5, None, 2.0]),
    ],
)
def test_rows_without_a_label_have_none_and_are_counted(labels, changed, numbers):
    found = read(labels, **changed)
    assert found.splits["train"] == numbers
    left_out = f"{numbers.count(None)} of {len(numbers)} rows of the train split have no label"
    assert [note for note in found.notes if note.startswith(left_out)]


def test_notes():
    notes = read(SNLI, SNLI[:2], model_names=MNLI, num_labels=3).notes
    assert notes == [
        "classes have the numbers of the model: 0 'CONTRADICTION', 1 'NEUTRAL', 2 'ENTAILMENT'",
        "the validation split has no row of class 'CONTRADICTION'",
    ]
    assert read([0, 1]).notes == read(["no", "yes"], model_names=["no", "yes"]).notes == []
    (other,) = read(["bad", "good"], model_names=["NEG", "POS"]).notes
    assert "numbered 0 'bad', 1 'good'; label_names" in other


@pytest.mark.parametrize(
    ("labels", "changed", "words"),
    [
        (["pos"] * 3, {}, "one class, 'pos', .*path=FOLDER"),
        ([1] * 3, {}, "one class, 1,"),
        ([1, -1], {}, "one class, 1,"),
        (["a", "b", "-"], {"num_labels": 3}, r"num_labels=3, .* 2 classes \(a, b\): set num_labels=2"),
        ([-1, -1], {}, r"no row of the train split has a label \(-1: 2\): .*train_split=…"),
        ([1, 2], {}, r"row 1 .* label 2, outside 0…1: set label_names=\[1,2\]"),
        ([0, 1, 2], {}, r"row 2 .* label 2, outside 0…1: set num_labels=…"),
        (["Yes", "no", "yes"], {}, r"3 classes \(Yes, no, yes\): .*label_names=\[…\]"),
        (["0", "1", "NA"], {}, r"3 classes \(0, 1, NA\): .*unlabelled=\[…\]"),
        (["a", "b"], {"wanted": ["a", "c"]}, r"label 'b', which is not in label_names=\['a', 'c'\]"),
        (["a", "b"], {"wanted": ["a", "b", "c"]}, r"label_names=.* has 3 different names for num_labels=2"),
        (["a", "b"], {"wanted": ["a", "a"]}, r"label_names=.* has 1 different names"),
        ([b"a", b"b"], {}, r"row 0 .*neither a word nor a whole number: .*label_column=…"),
        (["a", "b"], {"num_labels": 1}, r"row 0 .*label 'a', which is not a finite number"),
    ],
)  # fmt: skip
def test_unclear_labels_are_refused_in_one_line(labels, changed, words):
    with pytest.raises(ValueError, match=words) as error:
        read(labels, **changed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("train", "validation", "words"),
    [
        (["yes", "no"], ["yes", "maybe"], r"row 1 of the validation split has label 'maybe', .*\(no, yes\)"),
        ([0, 1], ["yes", "no"], r"row 0 of the validation split has label 'yes', .*whole numbers"),
        ([0, 1], [0, 2], r"row 1 of the validation split has label 2, outside 0…1"),
    ],
)
def test_splits_with_different_labels_are_refused(train, validation, words):
    with pytest.raises(ValueError, match=words):
        read(train, validation)
