"""Ternary weight networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qat_lightning.quantization.quantizers.base import Granularity, Quantizer, arguments


class TernaryQuantizer(Quantizer):
    """Three values {−α, 0, α}: Δ = threshold · mean|w|, α = mean of |w| over |w| > Δ, ŵ = α·sign(w) where |w| > Δ.

    α and Δ are plain functions of the (clamped) weights, computed in each forward pass; they get no gradient.
    A group of zeros stays zeros. Source: TWN, arXiv:1605.04711 §2.2, as TernaryBERT uses it, arXiv:2009.12812 §3.1.

    Args:
        granularity: one α for the matrix ("per_tensor"; the papers' linear layers) or for each row ("per_channel"; their word
            embedding).
        threshold: 0.7, TWN's approximation for weights that are normal or uniform.
    """

    kind, source = "ternary", "arXiv:1605.04711"
    bits_range, has_zero_point, code_type, is_deterministic = (2, 2), False, torch.int8, True

    def __init__(
        self,
        granularity: Granularity = "per_tensor",
        clip: float | None = 2.5,
        threshold: float = 0.7,
        group_size: int | None = None,
    ) -> None:
        super().__init__(2, granularity, clip, group_size)
        if not 0 <= threshold <= 4:
            raise ValueError(f"threshold={threshold} must be 0 to 4: beyond, hardly any weight differs from 0")
        self.threshold = threshold

    def levels(self) -> int:
        return 3

    def spec(self) -> dict[str, Any]:
        return arguments(self)

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights = self.widened(x)
        magnitude, shared = weights.abs(), self.shared(weights)
        if self.clip is not None:
            magnitude.clamp_(max=self.clip)
        # As 0 and 1 in floats: booleans, and products and sums of them with floats, take a CPU many times as long.
        large = torch.empty_like(magnitude)
        torch.gt(magnitude, self.threshold * magnitude.mean(shared, keepdim=True), out=large)
        # The smallest count is 1 so that a group without a large weight gets α = 0 and not 0/0.
        alpha = magnitude.mul_(large).sum(shared, keepdim=True) / large.sum(shared, keepdim=True).clamp(min=1)
        return large.copysign_(weights), alpha, torch.zeros_like(alpha)
