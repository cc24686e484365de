"""Losses: (student signals, teacher signals, batch) → scalar.

Each says which sites it reads, how much it weighs, and whether it needs a teacher.

Shapes: B batch, H heads, N queries, M keys, D head width, E hidden width, C classes.
`reduction="masked"` (default) never lets padding count; `"reference"` averages over all elements, padding included,
as the papers' released code does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from qat_lightning.signals import Batch, Signals, what_counts
from qat_lightning.sites import check_site

Reduction = Literal["masked", "reference"]
Distance = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(student, teacher, what counts or None for all) → scalar, in float32 at least."""

MASKED_SCORE = -100.0
"""Scores at or below this carry the attention mask; the papers set them to 0 on both sides (arXiv:2009.12812, released code)."""


def mean_squared_error(student: Tensor, teacher: Tensor, counts: Tensor | None) -> Tensor:
    """mean((student − teacher)²) over the elements that count (boolean, broadcastable)."""
    squares = (wide(student) - wide(teacher)).square()
    if counts is None:
        return squares.mean()
    counts = counts.expand_as(squares)
    return (squares * counts).sum() / counts.sum().clamp(min=1)


def score_mean_squared_error(student: Tensor, teacher: Tensor, counts: Tensor | None) -> Tensor:
    """MSE of attention scores (B, H, N, M); masked entries are set to 0 on both sides first.

    With counts=None they still count in the denominator, as in the released code (arXiv:2009.12812 §3.3, eq. for the
    attention loss).
    """
    student, teacher = (torch.where(scores <= MASKED_SCORE, 0.0, wide(scores)) for scores in (student, teacher))
    return mean_squared_error(student, teacher, counts)


class Match:
    """Σ over layers of distance(student's signal, teacher's signal) at one site.

    (hidden, MSE) and (attention.scores, score MSE) are TernaryBERT's, arXiv:2009.12812 §3.3; (attention.output, MSE) is
    KD-QAT's, arXiv:2211.11014 §4.

    Args:
        layers: (student layer, teacher layer) pairs, 0-based as the site counts them; None pairs each with its like.

    Raises:
        ValueError: an unknown site or reduction; at the first batch, depths that differ without `layers`, or a pair
            beyond a model's depth.
    """

    needs_teacher = True

    def __init__(
        self,
        site: str,
        distance: Distance = mean_squared_error,
        weight: float = 1.0,
        reduction: Reduction = "masked",
        layers: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.site, self.distance, self.weight = check_site(site), distance, weight
        self.reduction = _check(reduction, Reduction, "reduction")
        if layers is not None and not len(layers):
            raise ValueError("layers=[] matches nothing: name [student, teacher] pairs, or give null for all layers")
        self.layers = None if layers is None else [(int(own), int(other)) for own, other in layers]
        self.sites = (site,)

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        own, other = student[self.site], teacher[self.site]
        counts = what_counts(self.site, batch) if self.reduction == "masked" else None
        distances = [self.distance(own[s], other[t].detach(), counts) for s, t in self._pairs(len(own), len(other))]
        return torch.stack(distances).sum()

    def _pairs(self, own: int, other: int) -> list[tuple[int, int]]:
        if self.layers is None:
            if own != other:
                raise ValueError(
                    f"{self.site}: the student has {own} signals and the teacher {other}; say which belong together with"
                    " layers=[[student, teacher], …]"
                )
            return [(layer, layer) for layer in range(own)]
        for student_layer, teacher_layer in self.layers:
            if not (0 <= student_layer < own and 0 <= teacher_layer < other):
                raise ValueError(
                    f"{self.site}: layers holds [{student_layer}, {teacher_layer}], but the student's go from 0 to"
                    f" {own - 1} and the teacher's from 0 to {other - 1}"
                )
        return self.layers


class SoftCrossEntropy:
    """Prediction loss −Σ_c p_T log p_S with p = softmax(logits / temperature), averaged over the batch.

    A single logit is a regression: then it is MSE(logits), as in the papers for STS-B.

    Args:
        classes: "sum" adds over classes (arXiv:2211.11014 and 2302.11812, released code); "mean" averages over them, so
            is C times smaller (arXiv:2009.12812, released code).
    """

    sites, needs_teacher = ("logits",), True

    def __init__(self, weight: float = 1.0, classes: Literal["sum", "mean"] = "sum", temperature: float = 1.0) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} must be positive")
        self.weight, self.temperature = weight, temperature
        self.classes = _check(classes, Literal["sum", "mean"], "classes")

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        own, other = wide(student["logits"][0]), wide(teacher["logits"][0].detach())
        if own.shape[-1] == 1:
            return functional.mse_loss(own, other)
        terms = -functional.softmax(other / self.temperature, -1) * functional.log_softmax(own / self.temperature, -1)
        return (terms.sum(-1) if self.classes == "sum" else terms.mean(-1)).mean()


class Task:
    """The ground truth: cross-entropy with `labels` (B,), or MSE where the labels are floating (regression)."""

    sites, needs_teacher = ("logits",), False

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        logits, labels = wide(student["logits"][0]), batch["labels"]
        if labels.is_floating_point():
            return functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        return functional.cross_entropy(logits, labels)


def wide(x: Tensor) -> Tensor:
    """x in float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check(value: str, choices: object, name: str) -> str:
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r} is unknown: choose one of {', '.join(get_args(choices))}")
    return value
