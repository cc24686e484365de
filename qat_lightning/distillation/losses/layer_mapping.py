"""What several losses do with their arguments and signals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from qat_lightning.models.module_paths import layer_pairs

Pairs = Sequence[tuple[int, int]]


def wide(x: Tensor) -> Tensor:
    """x in float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def loss_weight(value: float) -> float:
    """The value itself; raises ValueError where it is negative, infinite or not a number."""
    if not 0 <= value < math.inf:
        raise ValueError(f"weight={value} must be 0 or more, and finite")
    return value


def loss_temperature(value: float) -> float:
    """The value itself; raises ValueError where scores cannot be divided by it."""
    if not 0 < value < math.inf:
        raise ValueError(f"temperature={value} must be positive, and finite")
    return value


def one_of(value: str, choices: object, name: str) -> str:
    """The value itself; raises ValueError where it is none of a Literal's choices."""
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r} is unknown: choose one of {', '.join(get_args(choices))}")
    return value


def given_pairs(layers: Sequence[Sequence[int]] | None) -> Pairs | None:
    """Pairs as configured, [[student, teacher], …]; raises ValueError for none of them."""
    if layers is not None and not (len(layers) and all(len(pair) == 2 for pair in layers)):
        raise ValueError(f"layers={list(layers)} must name [student, teacher] pairs, or be null for all layers")
    return None if layers is None else [(int(own), int(other)) for own, other in layers]


def pairs_of_layers(site: str, given: Pairs | None, own: int, other: int) -> Pairs:
    """The given pairs, or all layers; raises ValueError for a pair beyond a model's depth."""
    if given is None:
        return layer_pairs(site, own, other)
    for student_layer, teacher_layer in given:
        if not (0 <= student_layer < own and 0 <= teacher_layer < other):
            raise ValueError(
                f"{site}: layers holds [{student_layer}, {teacher_layer}], but the student's go from 0 to"
                f" {own - 1} and the teacher's from 0 to {other - 1}"
            )
    return given
