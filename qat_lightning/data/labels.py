"""Labels as they stand in a file → numbers that a loss can use; every doubt is an error that names the row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset


def class_names(train: Dataset, column: str, num_labels: int) -> list[str] | None:
    """Names of the classes in the order of their numbers: the column's own, else the sorted ones of a column of words.

    Returns:
        None where the labels are plain numbers.

    Raises:
        ValueError: not `num_labels` of them.
    """
    feature = train.features[column]
    names = list(feature.names) if isinstance(feature, ClassLabel) else sorted(_words(train[column][:]))
    if names and len(names) != num_labels:
        raise ValueError(
            f"data.num_labels={num_labels}, but column {column!r} has {len(names)} classes ({_listed(names)}): give"
            f" data.num_labels={len(names)}, or another data.label_column"
        )
    return names or None


def class_numbers(split: Dataset, column: str, names: Sequence[str] | None, num_labels: int, name: str) -> list[int]:
    """The class, 0…num_labels − 1, of each row of the split called `name`.

    Raises:
        ValueError: a class that is unknown, out of range or missing, or classes numbered otherwise than in training.
    """
    feature, values = split.features[column], split[column][:]
    own = feature.names if isinstance(feature, ClassLabel) else None
    if own is not None and names is not None and list(own) != list(names):
        raise ValueError(
            f"the {name} split numbers its classes {_listed(own)}, the train split {_listed(names)}: give data.path"
            " files that agree"
        )
    if names and own is None and any(isinstance(value, int | float) for value in values):
        raise ValueError(
            f"the {name} split has numbers for labels, the train split names ({_listed(names)}): give data.path files"
            " that agree"
        )
    numbers = {word: number for number, word in enumerate(names or ())}
    return [
        _class_number(value, numbers, num_labels, f"row {row} of the {name} split") for row, value in enumerate(values)
    ]


def scores(split: Dataset, column: str, name: str) -> list[float]:
    """The number that a regression predicts, of each row of the split called `name`.

    Raises:
        ValueError: no finite number, or the number of a class.
    """
    if isinstance(feature := split.features[column], ClassLabel):
        raise ValueError(
            f"column {column!r} holds classes ({_listed(feature.names)}), and data.num_labels=1 asks for a regression:"
            f" give data.num_labels={len(feature.names)}, or another data.label_column"
        )
    return [_score(value, f"row {row} of the {name} split") for row, value in enumerate(split[column][:])]


def _class_number(value: Any, numbers: dict[str, int], num_labels: int, row: str) -> int:
    if isinstance(value, str):
        if value not in numbers:
            raise ValueError(
                f"{row} has label {value!r}, which the train split does not have ({_listed(list(numbers))}): give"
                " data.label_column another column, or data.path files that agree"
            )
        return numbers[value]
    if value not in range(num_labels):
        raise ValueError(
            f"{row} has label {value!r}, outside 0…{num_labels - 1}: set data.num_labels to the number of classes,"
            " 1 for a regression (labels of −1 mark an unlabelled test split, which cannot be used)"
        )
    return int(value)


def _score(value: Any, row: str) -> float:
    try:
        if math.isfinite(score := float(value)):
            return score
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"{row} has label {value!r}, which is no number, and data.num_labels=1 asks for a regression: give"
        " data.label_column another column, or data.num_labels the number of classes"
    )


def _words(values: Sequence[Any]) -> set[str]:
    return {value for value in values if isinstance(value, str) and value}


def _listed(names: Sequence[str]) -> str:
    """At most ten of them."""
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "") or "none: its labels are numbers"
