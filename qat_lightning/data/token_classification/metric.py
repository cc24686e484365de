"""Precision, recall and F1 of entities, as the library seqeval and CoNLL's own script count them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from qat_lightning.data.tokenizers import IGNORED

Score = Literal["f1", "precision", "recall"]


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return (kind, first word, last word) of each entity of a sentence, in the schemes IO, IOB1, IOB2 and IOBES.

    An entity goes on at a tag I or E of its kind, unless its last tag was E or S: seqeval's default, and conlleval's.

    >>> sorted(entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]))
    [('LOC', 3, 3), ('LOC', 4, 4), ('PER', 0, 1)]
    """
    found: list[tuple[str, int, int]] = []
    last = "O"
    for place, tag in enumerate(tags):
        (prefix, kind), (before, other) = _parts(tag), _parts(last)
        if prefix in "IE" and before in "BI" and kind == other:
            found[-1] = (kind, found[-1][1], place)
        elif prefix != "O":
            found.append((kind, place, place))
        last = tag
    return set(found)


def _parts(tag: str) -> tuple[str, str]:
    """Return the prefix and the kind of a tag; a tag without a prefix is a kind by itself."""
    prefix, dash, kind = tag.partition("-")
    if tag == "O" or (prefix in ("B", "I", "E", "S") and (dash or not kind)):
        return prefix, kind
    return "I", tag


class EntityScore(Metric):
    """Score of the entities of all sentences together, from 0 to 1: right are those with the same words and kind.

    `update` takes class numbers (B, N) of predictions and of labels; tokens with the label −100 do not count.

    Args:
        score: "f1", "precision" or "recall".

    Attributes:
        names: the tags in the order of their numbers, set by the data module.
    """

    is_differentiable, higher_is_better, full_state_update = False, True, False
    counts: Tensor

    def __init__(self, score: Score = "f1", **common: object) -> None:
        super().__init__(**common)
        if score not in get_args(Score):
            raise ValueError(f"score={score!r} is unknown: choose one of {', '.join(get_args(Score))}")
        self.score, self.names = score, list[str]()
        self.add_state("counts", default=torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        for given, expected in zip(predictions, targets, strict=True):
            counted = expected != IGNORED
            found, right = (
                entities([self.names[number] for number in numbers[counted].tolist()]) for numbers in (given, expected)
            )
            self.counts += torch.tensor([len(found & right), len(found), len(right)], device=self.counts.device)

    def compute(self) -> Tensor:
        right, given, expected = self.counts
        below = {"f1": (given + expected) / 2, "precision": given, "recall": expected}[self.score]
        return (right / below.clamp(min=0.5)).float()
