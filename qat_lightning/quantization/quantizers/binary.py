"""Binary weight networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qat_lightning.quantization.quantizers.base import Granularity, Quantizer, arguments


class BinaryQuantizer(Quantizer):
    """Two values ±α: α = mean|w|, ŵ = α·sign(w) with sign(0) = 1. A group of zeros stays zeros.

    α is a plain function of the (clamped) weights and gets no gradient. Source: BWN, arXiv:1603.05279 §3.1.

    Args:
        granularity: what shares an α; the source takes one an output channel ("per_channel").
    """

    kind, source = "binary", "arXiv:1603.05279"
    bits_range, code_type, is_deterministic = (1, 1), torch.uint8, True

    def __init__(
        self, granularity: Granularity = "per_channel", clip: float | None = 2.5, group_size: int | None = None
    ) -> None:
        super().__init__(1, granularity, clip, group_size)

    def spec(self) -> dict[str, Any]:
        return arguments(self)

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights = self.prepared(x)
        alpha = weights.abs().mean(self.shared(weights), keepdim=True)
        # Codes 0 and 1 with zero point ½ and scale 2α are ±α.
        return (weights >= 0).to(weights.dtype), 2 * alpha, torch.full_like(alpha, 0.5)
