"""Convert the labels of a file to class numbers or scores; an unclear label is an error that names the row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import ClassLabel, Dataset

from qat_lightning.data.class_names import LabelColumn, class_names, numbering, one_class, shortened, whole_number


@dataclass
class Labels:
    """The labels of each split, None for a row without one.

    Args:
        names: the classes in the order of their numbers; None if labels are plain numbers.
        notes: notes for the user, one sentence each.
    """

    splits: Mapping[str, Sequence[int | float | None]]
    names: list[str] | None = None
    notes: list[str] = field(default_factory=list)

    def shown(self, number: float) -> str:
        """Return the name of a class, or its number."""
        return repr(self.names[int(number)]) if self.names else str(number)


def read_labels(splits: Mapping[str, Dataset], column: LabelColumn) -> Labels:
    """Number the classes, or read the scores, of "train" and of the other splits.

    A class has the number of its name in `column.names`, else in `column.model_names`. Without either, whole numbers keep
    their value, also as text; a `ClassLabel` column has its own order; other labels are sorted.

    Raises:
        ValueError: a class that is unknown or out of range, a split without labels, a single class.
    """
    if column.num_labels == 1:
        labels = Labels({name: _scores(split, column, name) for name, split in splits.items()})
    else:
        texts = {name: _words(split, column, name) for name, split in splits.items()}
        skipped = _skipped_words(splits["train"], texts["train"], column)
        names, notes = class_names(splits["train"], texts["train"], column, _hint(skipped))
        labels = Labels({name: _numbers(texts[name], names, column, name) for name in splits}, names, notes)
    for name, split in splits.items():
        labels.notes += _missing_labels(split, labels, column, name)
    if column.num_labels > 1:
        _check_classes(labels, column, [] if isinstance(splits["train"].features[column.name], ClassLabel) else skipped)
    return labels


def _words(split: Dataset, column: LabelColumn, name: str) -> list[str | None]:
    """Return each row's class as a word; None for none."""
    feature = split.features[column.name]
    names = feature.names if isinstance(feature, ClassLabel) else None
    texts = [_word(value, names, f"row {row} of the {name} split") for row, value in enumerate(split[column.name][:])]
    return [None if word is None or column.is_unlabelled(word) else word for word in texts]


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
        f"{row} has label {value!r}, which is neither a word nor a whole number: set another label_column=…"
    )


def _numbers(
    texts: Sequence[str | None], names: Sequence[str] | None, column: LabelColumn, name: str
) -> list[int | None]:
    """Return the class, 0…num_labels − 1, of each row of the split called `name`."""
    number_of = numbering(names or [str(number) for number in range(column.num_labels)])
    known: dict[str | None, int | None] = {None: None}
    for row, word in enumerate(texts):
        if word not in known:
            assert word is not None
            known[word] = number = number_of(word)
            if (
                number is None
                and column.names is not None
                and (itself := whole_number(word)) in range(column.num_labels)
            ):
                known[word] = number = itself  # label_names only gives names to plain numbers
            if number is None:
                raise ValueError(f"row {row} of the {name} split has label {_unknown(word, names, column, texts)}")
    return [known[word] for word in texts]


def _unknown(word: str, names: Sequence[str] | None, column: LabelColumn, texts: Sequence[str | None]) -> str:
    if names:
        return (
            f"{word!r}, which the train split does not have ({shortened(names)}): set another label_column=…, or path=FOLDER"
            " with files that agree"
        )
    try:
        float(word)
    except ValueError:
        return f"{word!r}, while the labels of the train split are whole numbers: set path=FOLDER with files that agree"
    outside = f"{word}, outside 0…{column.num_labels - 1}"
    found = sorted({word for word in texts if word is not None}, key=lambda word: (whole_number(word) or 0, word))
    if len(found) == column.num_labels:
        return f"{outside}: classes are numbered from 0, so set label_names=[{','.join(found)}]"
    return f"{outside}: set num_labels=… to the number of classes, or num_labels=1 for scores"


def _scores(split: Dataset, column: LabelColumn, name: str) -> list[float | None]:
    """Return the target of a regression for each row of the split called `name`."""
    if isinstance(feature := split.features[column.name], ClassLabel):
        raise ValueError(
            f"column {column.name!r} has classes ({shortened(feature.names)}), but num_labels=1 is a regression: set"
            f" num_labels={len(feature.names)}, or another label_column=…"
        )
    return [_score(value, column, f"row {row} of the {name} split") for row, value in enumerate(split[column.name][:])]


def _score(value: Any, column: LabelColumn, row: str) -> float | None:
    try:
        if value is None or math.isnan(score := float(value)):
            return None
        if math.isfinite(score):
            return score
    except (TypeError, ValueError):
        if isinstance(value, str) and column.is_unlabelled(value.strip()):
            return None
    raise ValueError(
        f"{row} has label {value!r}, which is not a finite number, but num_labels=1 is a regression: set another"
        " label_column=…, or num_labels=… to the number of classes"
    )


def _missing_labels(split: Dataset, labels: Labels, column: LabelColumn, name: str) -> list[str]:
    """Return notes about a split's rows without a label, and about classes without rows."""
    numbers = labels.splits[name]
    pairs = zip(split[column.name][:], numbers, strict=True)
    counts = Counter(repr(value) for value, number in pairs if number is None)
    found = ", ".join(f"{value}: {count}" for value, count in counts.most_common(3))
    if counts.total() == len(numbers):
        raise ValueError(
            f"no row of the {name} split has a label ({found}): name a split with labels by {name}_split=…, or set another"
            " label_column=…"
        )
    notes = []
    if counts:
        notes.append(
            f"{counts.total()} of {len(numbers)} rows of the {name} split have no label ({found}) and are left out"
        )
    if column.num_labels > 1 and (missing := sorted(set(range(column.num_labels)).difference(numbers))):
        notes.append(f"the {name} split has no row of class {shortened([*map(labels.shown, missing)])}")
    return notes


def _skipped_words(train: Dataset, texts: Sequence[str | None], column: LabelColumn) -> list[Any]:
    """Return the labels that count as missing although they are not empty: they may be meant as a class."""
    without = [value for value, word in zip(train[column.name][:], texts, strict=True) if word is None]
    return [value for value in without if value is not None and value == value and str(value).strip()]


def _hint(skipped: Sequence[Any]) -> str:
    if not skipped:
        return ""
    return (
        f" ({len(skipped)} rows have label {skipped[0]!r}, which counts as no label: if it is a class, set unlabelled=[];"
        " classes that are whole numbers start at 0)"
    )


def _check_classes(labels: Labels, column: LabelColumn, skipped: Sequence[Any]) -> None:
    """Refuse a single class, and a class without rows if a label that counts as missing may be that class."""
    found = set(labels.splits["train"]) - {None}
    if len(found) == 1:
        only = next(number for number in found if number is not None)
        raise ValueError(one_class(labels.shown(only), column) + _hint(skipped))
    if skipped and len(found) < column.num_labels:
        missing = min(set(range(column.num_labels)) - found)
        raise ValueError(
            f"the train split has no row of class {labels.shown(missing)}: set num_labels=… to the number of classes that have"
            f" rows{_hint(skipped)}"
        )
