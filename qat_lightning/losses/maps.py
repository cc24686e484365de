"""Attention maps. Shapes: B batch, H heads, N queries, M keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qat_lightning.losses.arguments import given_pairs, pairs_of_layers, wide
from qat_lightning.signals import Batch, Signals, what_counts

SMALLEST = 1e-8
"""Probabilities are clamped below at this (arXiv:2211.11014, released code)."""


class AttentionMap:
    """Σ over layers of mean over samples and heads of (1/n) Σ_i Σ_j P^T_ij · log(P^T_ij / P^S_ij), i and j no padding.

    KL(teacher‖student) of each query's map, averaged over the n valid queries of a sample; the maps are those before
    dropout and quantization. More padding changes nothing, nor does a constant added to a row of scores. Source: KD-QAT's
    attention-map loss, arXiv:2211.11014 §4.

    Args:
        layers: (student layer, teacher layer) pairs; None takes all, as `qat_lightning.sites.layer_pairs` matches them.
        temperature: τ, by which the scores of both are divided; 1 in the released code.

    Raises:
        ValueError: a temperature that is not positive; pairs as for `Match`.
    """

    sites, needs_teacher = ("attention.probs",), True

    def __init__(
        self, weight: float = 1.0, layers: Sequence[Sequence[int]] | None = None, temperature: float = 1.0
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} must be positive")
        self.weight, self.layers, self.temperature = weight, given_pairs(layers), temperature

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        own, other = student["attention.probs"], teacher["attention.probs"]
        counts = what_counts("attention.probs", batch)
        pairs = pairs_of_layers("attention.probs", self.layers, len(own), len(other))
        return torch.stack([self._divergence(own[s], other[t].detach(), counts) for s, t in pairs]).sum()

    def _divergence(self, student: Tensor, teacher: Tensor, counts: Tensor | None) -> Tensor:
        student, teacher = (self._cooled(wide(maps)).clamp(min=SMALLEST) for maps in (student, teacher))
        terms = teacher * (teacher / student).log()
        if counts is None:
            return terms.sum((-2, -1)).mean() / terms.shape[-2]
        queries = counts.any(-1).sum(-1).clamp(min=1)  # (B, 1)
        return ((terms * counts).sum((-2, -1)) / queries).mean()

    def _cooled(self, maps: Tensor) -> Tensor:
        """softmax(scores / τ) from softmax(scores)."""
        if self.temperature == 1:
            return maps
        # Off zero before the power, whose slope is infinite there: padded keys would turn the gradient into NaN.
        powers = maps.clamp(min=torch.finfo(maps.dtype).tiny) ** (1 / self.temperature) * (maps > 0)
        return powers / powers.sum(-1, keepdim=True)
