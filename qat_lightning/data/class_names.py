"""The classes of a data set: their names, and in which order they are numbered."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset

UNLABELLED = ("", "-", "-1")
"""Labels of rows that have none: SNLI's annotators disagreed ("-"), `datasets` has no word for a missing class (−1)."""


@dataclass(frozen=True)
class LabelColumn:
    """What is known of the labels before they are read.

    Attributes:
        name: the column.
        num_labels: classes; 1 for a regression.
        names: the classes in the order of their numbers, as the user gave them; None for no such wish.
        model_names: the same, as the model's configuration gives them.
        unlabelled: labels of rows that have none, beside null and NaN.
    """

    name: str
    num_labels: int
    names: Sequence[str] | None = None
    model_names: Sequence[str] | None = None
    unlabelled: Sequence[Any] = UNLABELLED

    def __post_init__(self) -> None:
        if self.names is not None and (self.num_labels == 1 or len(self.names) != self.num_labels):
            raise ValueError(
                f"data.label_names={list(self.names)} has {len(self.names)} names for data.num_labels={self.num_labels}:"
                " name each class once (a regression, data.num_labels=1, has none)"
            )
        if self.names is not None and len(set(self.names)) != len(self.names):
            raise ValueError(f"data.label_names={list(self.names)} names a class twice: name each class once")

    def absent(self, word: str) -> bool:
        """Whether the label stands for none; never one that is the name of a class."""
        return word in map(str, self.unlabelled) and word not in (*(self.names or ()), *(self.model_names or ()))


def as_names(given: Sequence[str | int | bool] | None) -> list[str] | None:
    """`data.label_names` as texts: [1, 2] and [true, false] are names as well."""
    return None if given is None else [*map(str, given)]


def plain(name: str) -> str:
    """A name without regard to case, spaces and hyphens; a whole number without decimal places."""
    bare = re.sub(r"^([+-]?[0-9]+)\.0+$", r"\1", name.strip().casefold())
    return re.sub(r"[\s_-]+", "_", bare)


def numbering(names: Sequence[str]) -> Callable[[str], int | None]:
    """A function from a class's name to its number: the name itself, else one that differs in case or spacing alone."""
    exact = {name: number for number, name in enumerate(names)}
    folded = {plain(name): number for number, name in enumerate(names)}
    if len(folded) < len(names):  # two classes that only case tells apart
        folded = {}
    return lambda word: exact.get(word, folded.get(plain(word)))


def class_names(
    train: Dataset, words: Sequence[str | None], column: LabelColumn, hint: str
) -> tuple[list[str] | None, list[str]]:
    """The names of the classes in the order of their numbers, None for plain numbers; and what is to be said of that."""
    feature = train.features[column.name]
    own = _own_names(feature, words, column)
    for names in (column.names, column.model_names):
        if names and own and all(number is not None for number in map(numbering(names), own)):
            order = [plain(name) for name in names if plain(name) in set(map(plain, own))]
            moved = names is column.model_names and order != [*map(plain, own)]
            said = f"classes are numbered as the model numbers them: {_numbered(names)}"
            return list(names), [said] * moved
    if str(getattr(feature, "dtype", "")).startswith(("int", "uint", "float")) and not isinstance(feature, ClassLabel):
        return (None if column.names is None else list(column.names)), []
    if column.names is not None:
        unknown = next(word for word in own if numbering(column.names)(word) is None)
        raise ValueError(
            f"column {column.name!r} has label {unknown!r}, which data.label_names={list(column.names)} lacks: name all its"
            f" classes ({listed(own)})"
        )
    if own and (names := _by_number(own, column.num_labels)):
        return names, []
    if own and len(own) != column.num_labels:
        raise ValueError(_wrong_count(own, column) + hint)
    said = (
        f"the model's classes ({listed(column.model_names or ())}) are others than the data's, which are numbered"
        f" {_numbered(own)}; data.label_names=[…] gives another order"
    )
    return own or None, [said] * bool(column.model_names)


def _own_names(feature: Any, words: Sequence[str | None], column: LabelColumn) -> list[str]:
    """The data's classes: in a `ClassLabel`'s own order, whole numbers by size, others sorted."""
    if isinstance(feature, ClassLabel):
        return [name.strip() for name in feature.names if not column.absent(name.strip())]
    found = {word for word in words if word is not None}
    numbers = {word: whole(word) for word in found}
    if None in numbers.values():
        return sorted(found)
    return sorted(found, key=lambda word: (numbers[word], word))


def _by_number(words: Sequence[str], num_labels: int) -> list[str] | None:
    """The names of classes whose words are their numbers, 0 to num_labels − 1; None where they are not."""
    numbers = {whole(word): word for word in words}
    if len(numbers) < len(words) or not all(number in range(num_labels) for number in numbers):
        return None
    return [numbers.get(number, str(number)) for number in range(num_labels)]


def whole(word: str) -> int | None:
    """The whole number that a word is, also as 7.0, or as transformers names a class without a name: LABEL_7."""
    found = re.fullmatch(r"(?:LABEL_)?([+-]?[0-9]{1,18})(?:\.0+)?", word)
    return int(found[1]) if found else None


def _wrong_count(names: Sequence[str], column: LabelColumn) -> str:
    if len(names) == 1:
        return one_class(repr(names[0]), column)
    has = f"data.num_labels={column.num_labels}, but column {column.name!r} has {len(names)} classes ({listed(names)})"
    alike = {plain(name): name for name in names}
    if len(alike) == column.num_labels:
        order = listed([*alike.values()])
        return f"{has}, some of which differ in case or spacing alone: give data.label_names=[…], each once ({order})"
    absent = ", or data.unlabelled=[…] with those that stand for no label" if len(names) > column.num_labels else ""
    return f"{has}: give data.num_labels={len(names)}, or another data.label_column{absent}"


def one_class(name: str, column: LabelColumn) -> str:
    return (
        f"all labels of the train split are of one class, {name}, and there is nothing to tell apart: give data.path rows of"
        f" other classes, or another data.label_column than {column.name!r}"
    )


def _numbered(names: Sequence[str]) -> str:
    return listed([f"{number} {name!r}" for number, name in enumerate(names)])


def listed(names: Sequence[str]) -> str:
    """At most ten of them."""
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
