"""Convert the labels of a file to class numbers or scores; an unclear label is an error that names the row."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import ClassLabel, Dataset

UNLABELLED = ("", "-", "-1")
"""Labels of rows without a class: "-" in SNLI, where annotators disagreed, and −1 in sets of the `datasets` library."""


@dataclass(frozen=True)
class LabelColumn:
    """The label column of a data set.

    Args:
        name: the column.
        num_labels: number of classes; 1 for a regression.
        names: the user's classes in the order of their numbers; None for no order.
        model_names: the classes in the order of the model's configuration.
        unlabelled: labels of rows without a class, beside null and NaN.
        unit: what has a label, for messages.
    """

    name: str
    num_labels: int
    names: Sequence[str] | None = None
    model_names: Sequence[str] | None = None
    unlabelled: Sequence[Any] = UNLABELLED
    unit: str = "row"

    def __post_init__(self) -> None:
        if self.names is None:
            return
        if self.num_labels == 1 or len(self.names) != self.num_labels or len(set(self.names)) != len(self.names):
            raise ValueError(
                f"label_names={list(self.names)} has {len(set(self.names))} different names for num_labels={self.num_labels}:"
                " name each class once (a regression, num_labels=1, has none)"
            )

    def is_unlabelled(self, word: str) -> bool:
        """Return whether the label means that the row has no class; never true for the name of a class."""
        return word in map(str, self.unlabelled) and word not in (*(self.names or ()), *(self.model_names or ()))


@dataclass
class Labels:
    """The labels of each split, numbers or lists of numbers, None for a row without one.

    Args:
        names: the classes in the order of their numbers; None if labels are plain numbers.
        notes: notes for the user, one sentence each.
    """

    splits: dict[str, Sequence[Any]]
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
        names, notes = _class_names(splits["train"], texts["train"], column)
        labels = Labels({name: _numbers(texts[name], names, column, name) for name in splits}, names, notes)
        if len(found := set(labels.splits["train"]) - {None}) == 1:
            raise ValueError(_one_class(labels.shown(found.pop()), column))
    for name, split in splits.items():
        labels.notes += _missing_labels(split, labels, column, name)
    return labels


def normalized(name: str) -> str:
    """Remove differences of case, spaces and hyphens from a name, and decimal zeros from a whole number.

    >>> normalized("Not-Entailed "), normalized("7.0")
    ('not_entailed', '7')
    """
    bare = re.sub(r"^([+-]?[0-9]+)\.0+$", r"\1", name.strip().casefold())
    return re.sub(r"[\s_-]+", "_", bare)


def whole_number(word: str) -> int | None:
    """Return the whole number in a word.

    >>> whole_number("7.0"), whole_number("LABEL_7"), whole_number("seven")
    (7, 7, None)
    """
    found = re.fullmatch(r"(?:LABEL_)?([+-]?[0-9]{1,18})(?:\.0+)?", word)
    return int(found[1]) if found else None


def _words(split: Dataset, column: LabelColumn, name: str) -> list[str | None]:
    """Return each row's class as a word; None for none."""
    feature = split.features[column.name]
    names = feature.names if isinstance(feature, ClassLabel) else ()
    words: list[str | None] = []
    for row, value in enumerate(split[column.name][:]):
        if value is None or value != value:
            words.append(None)
            continue
        if names and 0 <= value < len(names):
            value = names[value]
        elif isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, str | bool | int | float):
            raise ValueError(
                f"{column.unit} {row} of the {name} split has label {value!r}, which is neither a word nor a whole number: set"
                " another label_column=…"
            )
        word = str(value).strip()
        words.append(None if column.is_unlabelled(word) else word)
    return words


def _class_names(
    train: Dataset, texts: Sequence[str | None], column: LabelColumn
) -> tuple[list[str] | None, list[str]]:
    """Return the names of the classes in the order of their numbers, None for plain numbers; and notes for the user.

    Args:
        texts: the class of each row as a word; None for none.
    """
    feature = train.features[column.name]
    own = _own_names(feature, texts, column)
    for names in (column.names, column.model_names):
        if names and own and all(number is not None for number in map(_numbering(names), own)):
            order = [normalized(name) for name in names if normalized(name) in set(map(normalized, own))]
            differs = names is column.model_names and order != [*map(normalized, own)]
            return list(names), [f"classes have the numbers of the model: {_numbered(names)}"] * differs
    if str(getattr(feature, "dtype", "")).startswith(("int", "uint", "float")) and not isinstance(feature, ClassLabel):
        return (None if column.names is None else list(column.names)), []
    if column.names is not None:
        unknown = next(word for word in own if _numbering(column.names)(word) is None)
        raise ValueError(
            f"column {column.name!r} has the label {unknown!r}, which is not in label_names={list(column.names)}: name all"
            f" classes ({_shortened(own)})"
        )
    numbers = {whole_number(word): word for word in own}
    if own and len(numbers) == len(own) and all(number in range(column.num_labels) for number in numbers):
        return [numbers.get(number, str(number)) for number in range(column.num_labels)], []
    if own and len(own) != column.num_labels:
        if len(own) == 1:
            raise ValueError(_one_class(repr(own[0]), column))
        raise ValueError(
            f"num_labels={column.num_labels}, but column {column.name!r} has {len(own)} classes ({_shortened(own)}): set"
            f" num_labels={len(own)}, another label_column=…, unlabelled=[…] for rows without a class, or label_names=[…] for"
            " names that differ in case only"
        )
    note = (
        f"the model's classes ({_shortened(column.model_names or ())}) differ from the data's, which are numbered"
        f" {_numbered(own)}; label_names=[…] sets another order"
    )
    return own or None, [note] * bool(column.model_names)


def _own_names(feature: Any, texts: Sequence[str | None], column: LabelColumn) -> list[str]:
    """Return the data's classes: in a `ClassLabel`'s own order, whole numbers by size, others sorted."""
    if isinstance(feature, ClassLabel):
        return [name.strip() for name in feature.names if not column.is_unlabelled(name.strip())]
    found = {word for word in texts if word is not None}
    numbers = {word: whole_number(word) for word in found}
    return sorted(found) if None in numbers.values() else sorted(found, key=lambda word: (numbers[word], word))


def _numbering(names: Sequence[str]) -> Callable[[str], int | None]:
    """Return a function from a class's name, or one that only differs in case or spaces, to its number."""
    exact = {name: number for number, name in enumerate(names)}
    folded = {normalized(name): number for number, name in enumerate(names)}
    if len(folded) < len(names):  # two classes that differ in case only
        folded = {}
    return lambda word: exact.get(word, folded.get(normalized(word)))


def _numbers(
    texts: Sequence[str | None], names: Sequence[str] | None, column: LabelColumn, name: str
) -> list[int | None]:
    """Return the class, 0…num_labels − 1, of each row of the split called `name`."""
    number_of = _numbering(names or [str(number) for number in range(column.num_labels)])
    known: dict[str | None, int | None] = {None: None}
    for row, word in enumerate(texts):
        if word is None or word in known:
            continue
        number = number_of(word)
        if number is None and column.names is not None and whole_number(word) in range(column.num_labels):
            number = whole_number(word)  # label_names only gives names to plain numbers
        if number is None:
            raise ValueError(
                f"{column.unit} {row} of the {name} split has label {_unknown(word, names, column, texts)}"
            )
        known[word] = number
    return [known[word] for word in texts]


def _unknown(word: str, names: Sequence[str] | None, column: LabelColumn, texts: Sequence[str | None]) -> str:
    if names:
        return (
            f"{word!r}, which the train split does not have ({_shortened(names)}): set another label_column=…, or path=FOLDER"
            " with files that agree"
        )
    if whole_number(word) is None:
        return f"{word!r}, while the labels of the train split are whole numbers: set path=FOLDER with files that agree"
    found = sorted({word for word in texts if word is not None}, key=lambda word: (whole_number(word) or 0, word))
    remedy = "num_labels=… to the number of classes, or num_labels=1 for scores"
    if len(found) == column.num_labels:
        remedy = f"label_names=[{','.join(found)}], as classes are numbered from 0"
    return f"{word}, outside 0…{column.num_labels - 1}: set {remedy}"


def _scores(split: Dataset, column: LabelColumn, name: str) -> list[float | None]:
    """Return the target of a regression for each row of the split called `name`."""
    if isinstance(feature := split.features[column.name], ClassLabel):
        raise ValueError(
            f"column {column.name!r} has classes ({_shortened(feature.names)}), but num_labels=1 is a regression: set"
            f" num_labels={len(feature.names)}, or another label_column=…"
        )
    scores: list[float | None] = []
    for row, value in enumerate(split[column.name][:]):
        try:
            score = math.nan if value is None else float(value)
        except (TypeError, ValueError):
            score = math.nan if isinstance(value, str) and column.is_unlabelled(value.strip()) else math.inf
        if math.isinf(score):
            raise ValueError(
                f"row {row} of the {name} split has label {value!r}, which is not a finite number, but num_labels=1 is a"
                " regression: set another label_column=…, or num_labels=… to the number of classes"
            )
        scores.append(None if math.isnan(score) else score)
    return scores


def _missing_labels(split: Dataset, labels: Labels, column: LabelColumn, name: str) -> list[str]:
    """Return notes about a split's rows without a label, and about classes without rows."""
    numbers = labels.splits[name]
    pairs = zip(split[column.name][:], numbers, strict=True)
    counts = Counter(repr(value) for value, number in pairs if number is None)
    found = ", ".join(f"{value}: {count}" for value, count in counts.most_common(3))
    if counts.total() == len(numbers):
        raise ValueError(
            f"no {column.unit} of the {name} split has a label ({found}): name a split with labels by {name}_split=…, or set"
            " another label_column=…, or unlabelled=[]"
        )
    notes = []
    if counts:
        notes.append(
            f"{counts.total()} of {len(numbers)} {column.unit}s of the {name} split have no label ({found}) and are left out"
        )
    if column.num_labels > 1 and (missing := sorted(set(range(column.num_labels)).difference(numbers))):
        notes.append(f"the {name} split has no {column.unit} of class {_shortened([*map(labels.shown, missing)])}")
    return notes


def _one_class(name: str, column: LabelColumn) -> str:
    return (
        f"all labels of the train split are of one class, {name}, so nothing can be learned: set path=FOLDER with rows of other"
        f" classes, or another label_column=… than {column.name!r}"
    )


def _numbered(names: Sequence[str]) -> str:
    return _shortened([f"{number} {name!r}" for number, name in enumerate(names)])


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
