"""Losses that bring one signal of the student towards the teacher's, layer by layer.

Shapes: B batch, H heads, N queries, M keys. `padding="ignore"` (default) never lets padding count; `"include"` averages
over all elements, padding included, as the papers' released code does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from qat_lightning.distillation.losses.base import check_pairs, check_weight, match_layers
from qat_lightning.models.capture import Batch, Signals, what_counts
from qat_lightning.models.sites import check_site
from qat_lightning.quantization.quantizers.base import check_choice, to_float32

Padding = Literal["ignore", "include"]
Distance = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(student, teacher, what counts or None for all) → scalar, in float32 at least."""

MASKED_SCORE = -100.0
"""Scores at or below this carry the attention mask; the papers set them to 0 on both sides (arXiv:2009.12812, released code)."""


def mean_squared_error(student: Tensor, teacher: Tensor, counts: Tensor | None) -> Tensor:
    """mean((student − teacher)²) over the elements that count (boolean, broadcastable)."""
    return _mean_square(to_float32(student) - to_float32(teacher), counts)


def score_mean_squared_error(student: Tensor, teacher: Tensor, counts: Tensor | None) -> Tensor:
    """MSE of attention scores (B, H, N, M); masked entries are set to 0 on both sides first.

    With counts=None they still count in the denominator, as in the released code (arXiv:2009.12812 §3.3, eq. for the
    attention loss).
    """
    student = torch.where(student <= MASKED_SCORE, 0.0, to_float32(student))
    return _mean_square(student - functional.threshold(to_float32(teacher), MASKED_SCORE, 0.0), counts)


def _mean_square(difference: Tensor, counts: Tensor | None) -> Tensor:
    """Over the elements that count. What only this function sees is multiplied in place: maps are large."""
    if counts is None:
        return _sum_of_squares(difference) / difference.numel()
    counted = counts.sum() * (difference.numel() // max(1, counts.numel()))
    return _sum_of_squares(difference.mul_(counts.to(difference.dtype))) / counted.clamp(min=1)


def _sum_of_squares(x: Tensor) -> Tensor:
    """By an operator whose backward pass goes over memory once; square().sum() makes three tensors of the size of x there."""
    return functional.mse_loss(x, x.new_zeros(()).expand_as(x), reduction="sum")


class FeatureMatchingLoss:
    """Σ over layers of distance(student's signal, teacher's signal) at one site.

    (hidden, MSE) and (attention.scores, score MSE) are TernaryBERT's, arXiv:2009.12812 §3.3; (attention.output, MSE) is
    KD-QAT's, arXiv:2211.11014 §4.

    Args:
        layers: (student layer, teacher layer) pairs, 0-based as the site counts them; None takes all, as
            `qat_lightning.models.module_paths.layer_pairs` matches them.

    Raises:
        ValueError: an unknown site or padding; at the first batch, depths that do not go together without `layers`,
            or a pair beyond a model's depth.
    """

    needs_teacher = True

    def __init__(
        self,
        site: str,
        distance: Distance = mean_squared_error,
        weight: float = 1.0,
        padding: Padding = "ignore",
        layers: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.site, self.distance, self.weight = check_site(site), distance, check_weight(weight)
        self.padding = check_choice(padding, Padding, "padding")
        self.layers, self.sites = check_pairs(layers), (site,)

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        own, other = student[self.site], teacher[self.site]
        counts = what_counts(self.site, batch) if self.padding == "ignore" else None
        pairs = match_layers(self.site, self.layers, len(own), len(other))
        distances = [self.distance(own[s], other[t].detach(), counts) for s, t in pairs]
        return torch.stack(distances).sum()
