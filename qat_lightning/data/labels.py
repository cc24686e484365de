"""Labels as a file holds them → numbers that a loss can use; every doubt is an error that names the row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import ClassLabel, Dataset

from qat_lightning.data.class_names import LabelColumn, class_names, listed, numbering, one_class, whole


@dataclass
class Labels:
    """The labels of each split, None for a row that has none.

    Attributes:
        names: of the classes in the order of their numbers; None where labels are plain numbers.
        notes: what a user should know, one sentence each.
    """

    splits: Mapping[str, Sequence[int | float | None]]
    names: list[str] | None = None
    notes: list[str] = field(default_factory=list)


def read_labels(splits: Mapping[str, Dataset], column: LabelColumn) -> Labels:
    """Number the classes, or read the scores, of "train" and of the other splits.

    A class takes the number that `column.names` gives its name, else the one that the model gives it. Without either:
    whole numbers are themselves, also as text; a `ClassLabel` column has its own order; other words are sorted.

    Raises:
        ValueError: a class that is unknown or out of range, a split without labels, one class only.
    """
    if column.num_labels == 1:
        labels = Labels({name: _scores(split, column, name) for name, split in splits.items()})
    else:
        words = {name: _words(split, column, name) for name, split in splits.items()}
        marked = _marked(splits["train"], words["train"], column)
        names, notes = class_names(splits["train"], words["train"], column, _hint(marked))
        labels = Labels({name: _numbers(words[name], names, column, name) for name in splits}, names, notes)
    for name, split in splits.items():
        labels.notes += _left_out(split, labels, column, name)
    if column.num_labels > 1:
        _check_classes(labels, column, [] if isinstance(splits["train"].features[column.name], ClassLabel) else marked)
    return labels


def _words(split: Dataset, column: LabelColumn, name: str) -> list[str | None]:
    """Each row's class as a word; None for none."""
    feature = split.features[column.name]
    names = feature.names if isinstance(feature, ClassLabel) else None
    words = [_word(value, names, f"row {row} of the {name} split") for row, value in enumerate(split[column.name][:])]
    return [None if word is None or column.absent(word) else word for word in words]


def _word(value: Any, names: Sequence[str] | None, row: str) -> str | None:
    if value is None or value != value:
        return None
    if names is not None:
        return names[value].strip() if 0 <= value < len(names) else str(value)
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool | int | float):
        return str(int(value) if isinstance(value, float) and value.is_integer() else value)
    raise ValueError(
        f"{row} has label {value!r}, which is neither a word nor a whole number: give data.label_column another column"
    )


def _numbers(
    words: Sequence[str | None], names: Sequence[str] | None, column: LabelColumn, name: str
) -> list[int | None]:
    """The class, 0…num_labels − 1, of each row of the split called `name`."""
    number_of = numbering(names or [str(number) for number in range(column.num_labels)])
    known: dict[str | None, int | None] = {None: None}
    for row, word in enumerate(words):
        if word not in known:
            assert word is not None
            known[word] = number = number_of(word)
            if number is None and column.names is not None and (itself := whole(word)) in range(column.num_labels):
                known[word] = number = itself  # data.label_names only names plain numbers
            if number is None:
                raise ValueError(_unknown(word, f"row {row} of the {name} split", names, column.num_labels, words))
    return [known[word] for word in words]


def _unknown(word: str, row: str, names: Sequence[str] | None, num_labels: int, words: Sequence[str | None]) -> str:
    if names:
        return (
            f"{row} has label {word!r}, which the train split does not have ({listed(names)}): give"
            " data.label_column another column, or data.path files that agree"
        )
    if _float(word) is None:
        return f"{row} has label {word!r}, while labels of the train split are whole numbers: give data.path files that agree"
    found = sorted({word for word in words if word is not None}, key=lambda word: (whole(word) or 0, word))
    if len(found) == num_labels:
        return (
            f"{row} has label {word}, outside 0…{num_labels - 1}: classes are numbered from 0, so give"
            f" data.label_names=[{','.join(found)}] for these"
        )
    return (
        f"{row} has label {word}, outside 0…{num_labels - 1}: set data.num_labels to the number of classes,"
        " or choose data=text_regression for scores"
    )


def _float(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _scores(split: Dataset, column: LabelColumn, name: str) -> list[float | None]:
    """The number that a regression predicts, of each row of the split called `name`."""
    if isinstance(feature := split.features[column.name], ClassLabel):
        raise ValueError(
            f"column {column.name!r} holds classes ({listed(feature.names)}), and data.num_labels=1 asks for a regression:"
            f" give data.num_labels={len(feature.names)}, or another data.label_column"
        )
    values = split[column.name][:]
    return [_score(value, column, f"row {row} of the {name} split") for row, value in enumerate(values)]


def _score(value: Any, column: LabelColumn, row: str) -> float | None:
    try:
        if value is None or math.isnan(score := float(value)):
            return None
        if math.isfinite(score):
            return score
    except (TypeError, ValueError):
        if isinstance(value, str) and column.absent(value.strip()):
            return None
    raise ValueError(
        f"{row} has label {value!r}, which is no number, and data.num_labels=1 asks for a regression: give"
        " data.label_column another column, or data.num_labels the number of classes"
    )


def _left_out(split: Dataset, labels: Labels, column: LabelColumn, name: str) -> list[str]:
    """What is to be said of a split's rows without a label, and of the classes that it lacks."""
    numbers = labels.splits[name]
    without = numbers.count(None)
    if without == len(numbers):
        raise ValueError(
            f"no row of the {name} split has a label ({_markers(split, numbers, column)}): give a split with labels by"
            f" data.{name}_split=…, or another data.label_column"
        )
    notes = []
    if without:
        marked = _markers(split, numbers, column)
        notes.append(f"{without} of {len(numbers)} rows of the {name} split have no label ({marked}) and are left out")
    if column.num_labels > 1 and (lacking := sorted(set(range(column.num_labels)).difference(numbers))):
        shown = listed([_shown(number, labels) for number in lacking])
        notes.append(f"the {name} split has no row of class {shown}")
    return notes


def _markers(split: Dataset, numbers: Sequence[Any], column: LabelColumn) -> str:
    """How often each label that stands for none is there: `'-' 3 times`."""
    values = split[column.name][:]
    counts = Counter(repr(value) for value, number in zip(values, numbers, strict=True) if number is None)
    return ", ".join(f"{value}: {count}" for value, count in counts.most_common(3))


def _marked(train: Dataset, words: Sequence[str | None], column: LabelColumn) -> list[Any]:
    """The labels that stand for none though they are neither missing nor empty: they could be meant as a class."""
    without = [value for value, word in zip(train[column.name][:], words, strict=True) if word is None]
    return [value for value in without if value is not None and value == value and str(value).strip()]


def _hint(marked: Sequence[Any]) -> str:
    if not marked:
        return ""
    return (
        f" ({len(marked)} rows have label {marked[0]!r}, which stands for no label: if it is a class, give"
        " data.unlabelled=[]; classes that are whole numbers begin at 0)"
    )


def _check_classes(labels: Labels, column: LabelColumn, marked: Sequence[Any]) -> None:
    """Refuse a single class, and a class without rows where a label that stands for none may well be that class."""
    found = set(labels.splits["train"]) - {None}
    if len(found) == 1:
        only = next(number for number in found if number is not None)
        raise ValueError(one_class(_shown(only, labels), column) + _hint(marked))
    if marked and len(found) < column.num_labels:
        lacking = min(set(range(column.num_labels)) - found)
        raise ValueError(
            f"the train split has no row of class {_shown(lacking, labels)}: give"
            f" data.num_labels the number of classes that have rows{_hint(marked)}"
        )


def _shown(number: float, labels: Labels) -> str:
    return repr(labels.names[int(number)]) if labels.names else str(number)
