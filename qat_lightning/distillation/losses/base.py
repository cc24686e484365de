"""The protocol of all losses, and the checks of arguments and signals that several losses share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from qat_lightning.models.capture import Batch, Signals
from qat_lightning.models.module_paths import layer_pairs

Pairs = Sequence[tuple[int, int]]


class Loss(Protocol):
    """A term of the objective: (student signals, teacher signals, batch) → scalar.

    Attributes:
        weight: the factor of the term; a loss of weight 0 is neither computed nor are its sites captured.
        sites: the sites that the loss reads of both models.
        needs_teacher: False if the loss does not read the teacher's signals.
    """

    weight: float
    needs_teacher: bool

    @property
    def sites(self) -> Sequence[str]: ...

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor: ...


def check_weight(weight: float) -> float:
    """Return the weight; raise ValueError if it is negative, infinite or NaN."""
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight={weight} must be 0 or more, and finite")
    return weight


def check_temperature(temperature: float) -> float:
    """Return the temperature; raise ValueError if it is not positive and finite."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be positive, and finite")
    return temperature


def check_pairs(layers: Sequence[Sequence[int]] | None) -> Pairs | None:
    """Return [student, teacher] pairs as tuples; raise ValueError for an empty list or other lengths."""
    if layers is not None and not (len(layers) and all(len(pair) == 2 for pair in layers)):
        raise ValueError(f"layers={list(layers)} must name [student, teacher] pairs, or be null for all layers")
    return None if layers is None else [(int(own), int(other)) for own, other in layers]


def match_layers(site: str, pairs: Pairs | None, student: int, teacher: int) -> Pairs:
    """Return the pairs, or pairs of all layers, of models with so many signals at `site`; ValueError for one beyond a depth."""
    if pairs is None:
        return layer_pairs(site, student, teacher)
    for student_layer, teacher_layer in pairs:
        if not (0 <= student_layer < student and 0 <= teacher_layer < teacher):
            raise ValueError(
                f"{site}: layers holds [{student_layer}, {teacher_layer}], but the student's go from 0 to"
                f" {student - 1} and the teacher's from 0 to {teacher - 1}"
            )
    return pairs
