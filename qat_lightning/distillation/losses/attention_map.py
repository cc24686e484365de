"""Attention maps. Shapes: B batch, H heads, N queries, M keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from qat_lightning.distillation.losses.attention_map_blockwise import ELEMENTS, Factors, Settings, divergence
from qat_lightning.distillation.losses.base import check_pairs, check_temperature, check_weight, match_layers
from qat_lightning.models.capture import Batch, Signals, what_counts
from qat_lightning.models.map_divergence import SMALLEST, map_divergence_sums
from qat_lightning.models.sites import FACTORS
from qat_lightning.quantization.quantizers.base import check_choice, to_float32

Implementation = Literal["dense", "blockwise"]


class AttentionMapLoss:
    """Σ over layers of mean over samples and heads of (1/n) Σ_i Σ_j P^T_ij · log(P^T_ij / P^S_ij), i and j no padding.

    KL(teacher‖student) of each query's map, averaged over the n valid queries of a sample; the maps are those before
    dropout and quantization. More padding changes nothing, nor does a constant added to a row of scores. Source: KD-QAT's
    attention-map loss, arXiv:2211.11014 §4.

    Args:
        layers: (student layer, teacher layer) pairs; None takes all, as
            `qat_lightning.models.module_paths.layer_pairs` matches them.
        temperature: τ, by which the scores of both are divided; 1 in the released code.
        implementation: "dense" reads the maps; "blockwise" computes them from queries, keys and masks, some rows at a
            time, so that its memory is linear in the length. Both give the same loss and gradient but for rounding; a
            second derivative has the dense one alone.

    Raises:
        ValueError: a temperature that is not positive; an unknown implementation; pairs as for `FeatureMatchingLoss`.
    """

    needs_teacher = True

    def __init__(
        self,
        weight: float = 1.0,
        layers: Sequence[Sequence[int]] | None = None,
        temperature: float = 1.0,
        implementation: Implementation = "dense",
    ) -> None:
        self.weight, self.layers = check_weight(weight), check_pairs(layers)
        self.temperature = check_temperature(temperature)
        self.implementation = check_choice(implementation, Implementation, "implementation")
        self.sites = FACTORS if implementation == "blockwise" else ("attention.probs",)

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        own, other = student[self.sites[0]], teacher[self.sites[0]]
        pairs = match_layers("attention.probs", self.layers, len(own), len(other))
        if self.implementation == "blockwise":
            return torch.stack(
                [self._by_blocks(_factors(student, s), _factors(teacher, t), batch) for s, t in pairs]
            ).sum()
        counts = what_counts("attention.probs", batch)
        return torch.stack([self._divergence(own[s], other[t].detach(), counts) for s, t in pairs]).sum()

    def _by_blocks(self, student: Factors, teacher: Factors, batch: Batch) -> Tensor:
        """Compute the loss in blocks of queries; a query weighs 1/(B·H·n), and the masks exclude padded keys."""
        samples, heads, queries, _ = student.query.shape
        counts = what_counts("attention.context", batch)  # (B, 1, N, 1)
        valid = student.query.new_ones(1, 1, queries) if counts is None else counts[..., 0].to(student.query.dtype)
        weights = valid / (valid.sum(-1, keepdim=True).clamp(min=1) * samples * heads)
        return divergence(student, teacher, Settings(weights, self.temperature, SMALLEST, ELEMENTS))

    def _divergence(self, student: Tensor, teacher: Tensor, counts: Tensor | None) -> Tensor:
        student, teacher = (self._cooled(to_float32(maps)) for maps in (student, teacher))
        sums, queries = map_divergence_sums(student, teacher, counts)
        return sums.mean() / queries if counts is None else (sums / queries).mean()

    def _cooled(self, maps: Tensor) -> Tensor:
        """Compute softmax(scores / τ) from softmax(scores)."""
        if self.temperature == 1:
            return maps
        # Off zero before the power, whose slope is infinite there: padded keys would turn the gradient into NaN.
        powers = maps.clamp(min=torch.finfo(maps.dtype).tiny) ** (1 / self.temperature) * (maps > 0)
        return powers / powers.sum(-1, keepdim=True)


def _factors(signals: Signals, layer: int) -> Factors:
    query, key, mask = (signals[site][layer] for site in FACTORS)
    return Factors(to_float32(query), to_float32(key), mask.detach())
