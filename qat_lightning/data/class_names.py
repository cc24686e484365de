"""The classes of a data set: their names, and the order in which they are numbered."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    """

    name: str
    num_labels: int
    names: Sequence[str] | None = None
    model_names: Sequence[str] | None = None
    unlabelled: Sequence[Any] = UNLABELLED

    def __post_init__(self) -> None:
        if self.names is not None and (self.num_labels == 1 or len(self.names) != self.num_labels):
            raise ValueError(
                f"label_names={list(self.names)} has {len(self.names)} names for num_labels={self.num_labels}: name each"
                " class once (a regression, num_labels=1, has none)"
            )
        if self.names is not None and len(set(self.names)) != len(self.names):
            raise ValueError(f"label_names={list(self.names)} names a class twice: name each class once")

    def is_unlabelled(self, word: str) -> bool:
        """Return whether the label means that the row has no class; never true for the name of a class."""
        return word in map(str, self.unlabelled) and word not in (*(self.names or ()), *(self.model_names or ()))


def as_names(given: Sequence[str | int | bool] | None) -> list[str] | None:
    """Convert label_names to texts: [1, 2] and [true, false] are names as well."""
    return None if given is None else [*map(str, given)]


def normalized(name: str) -> str:
    """Remove differences of case, spaces and hyphens from a name, and decimal zeros from a whole number.

    >>> normalized("Not-Entailed "), normalized("7.0")
    ('not_entailed', '7')
    """
    bare = re.sub(r"^([+-]?[0-9]+)\.0+$", r"\1", name.strip().casefold())
    return re.sub(r"[\s_-]+", "_", bare)


def numbering(names: Sequence[str]) -> Callable[[str], int | None]:
    """Return a function from a class's name, or one that only differs in case or spaces, to its number."""
    exact = {name: number for number, name in enumerate(names)}
    folded = {normalized(name): number for number, name in enumerate(names)}
    if len(folded) < len(names):  # two classes that differ in case only
        folded = {}
    return lambda word: exact.get(word, folded.get(normalized(word)))


def class_names(
    train: Dataset, texts: Sequence[str | None], column: LabelColumn, hint: str
) -> tuple[list[str] | None, list[str]]:
    """Return the names of the classes in the order of their numbers, None for plain numbers; and notes for the user.

    Args:
        texts: the class of each row as a word; None for none.
        hint: the end of an error's message.
    """
    feature = train.features[column.name]
    own = _own_names(feature, texts, column)
    for names in (column.names, column.model_names):
        if names and own and all(number is not None for number in map(numbering(names), own)):
            order = [normalized(name) for name in names if normalized(name) in set(map(normalized, own))]
            differs = names is column.model_names and order != [*map(normalized, own)]
            return list(names), [f"classes have the numbers of the model: {_numbered(names)}"] * differs
    if str(getattr(feature, "dtype", "")).startswith(("int", "uint", "float")) and not isinstance(feature, ClassLabel):
        return (None if column.names is None else list(column.names)), []
    if column.names is not None:
        unknown = next(word for word in own if numbering(column.names)(word) is None)
        raise ValueError(
            f"column {column.name!r} has the label {unknown!r}, which is not in label_names={list(column.names)}: name all"
            f" classes ({shortened(own)})"
        )
    if own and (names := _by_number(own, column.num_labels)):
        return names, []
    if own and len(own) != column.num_labels:
        raise ValueError(_wrong_count(own, column) + hint)
    note = (
        f"the model's classes ({shortened(column.model_names or ())}) differ from the data's, which are numbered"
        f" {_numbered(own)}; label_names=[…] sets another order"
    )
    return own or None, [note] * bool(column.model_names)


def _own_names(feature: Any, texts: Sequence[str | None], column: LabelColumn) -> list[str]:
    """Return the data's classes: in a `ClassLabel`'s own order, whole numbers by size, others sorted."""
    if isinstance(feature, ClassLabel):
        return [name.strip() for name in feature.names if not column.is_unlabelled(name.strip())]
    found = {word for word in texts if word is not None}
    numbers = {word: whole_number(word) for word in found}
    if None in numbers.values():
        return sorted(found)
    return sorted(found, key=lambda word: (numbers[word], word))


def _by_number(texts: Sequence[str], num_labels: int) -> list[str] | None:
    """Return the names of classes whose labels are their numbers, 0 to num_labels − 1; else None."""
    numbers = {whole_number(word): word for word in texts}
    if len(numbers) < len(texts) or not all(number in range(num_labels) for number in numbers):
        return None
    return [numbers.get(number, str(number)) for number in range(num_labels)]


def whole_number(word: str) -> int | None:
    """Return the whole number in a word.

    >>> whole_number("7.0"), whole_number("LABEL_7"), whole_number("seven")
    (7, 7, None)
    """
    found = re.fullmatch(r"(?:LABEL_)?([+-]?[0-9]{1,18})(?:\.0+)?", word)
    return int(found[1]) if found else None


def _wrong_count(names: Sequence[str], column: LabelColumn) -> str:
    if len(names) == 1:
        return one_class(repr(names[0]), column)
    problem = (
        f"num_labels={column.num_labels}, but column {column.name!r} has {len(names)} classes ({shortened(names)})"
    )
    distinct = {normalized(name): name for name in names}
    if len(distinct) == column.num_labels:
        order = shortened([*distinct.values()])
        return f"{problem}, some of which differ in case or spaces only: set label_names=[…], each once ({order})"
    absent = ", or unlabelled=[…] with the labels of rows without a class" if len(names) > column.num_labels else ""
    return f"{problem}: set num_labels={len(names)}, or another label_column=…{absent}"


def one_class(name: str, column: LabelColumn) -> str:
    """Return the message about a training split of a single class."""
    return (
        f"all labels of the train split are of one class, {name}, so nothing can be learned: set path=FOLDER with rows of other"
        f" classes, or another label_column=… than {column.name!r}"
    )


def _numbered(names: Sequence[str]) -> str:
    return shortened([f"{number} {name!r}" for number, name in enumerate(names)])


def shortened(names: Sequence[str]) -> str:
    """Join at most ten names."""
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
