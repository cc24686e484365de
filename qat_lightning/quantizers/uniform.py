"""Uniform symmetric quantization, the papers' 8-bit activations."""

from __future__ import annotations

import torch
from torch import Tensor

from qat_lightning.quantizers.base import Granularity, Quantizer, Scale, is_static


class UniformQuantizer(Quantizer):
    """x̂ = round(x·s)/s with s = Q/m, Q = 2^(bits−1) − 1 and m = max|x| of what shares a scale; 2Q + 1 levels.

    Source: TernaryBERT, arXiv:2009.12812 §3.2; symmetric as in the released code.

    Args:
        scale: "dynamic" takes m from the tensor at hand, in training and evaluation, as the papers do; with granularity
            "tensor" a sample's result then depends on its batch. "static" takes m from `calibrate`, or the clip itself
            before that, so a sample's result never depends on its batch.

    Raises:
        ValueError: bits outside 2…8; static scale with granularity "row" or without a clip.
    """

    bits_range = (2, 8)
    maximum: Tensor

    def __init__(
        self,
        bits: int = 8,
        granularity: Granularity = "tensor",
        clip: float | None = 2.5,
        scale: Scale = "dynamic",
        group_size: int | None = None,
    ) -> None:
        super().__init__(bits, granularity, clip, group_size)
        self.scale = scale
        self.static, self.calibrated = is_static(scale, granularity, clip), False
        if self.static and clip is not None:
            self.register_buffer("maximum", torch.tensor(float(clip)))

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        if self.static:
            seen = self.prepared(x).abs().amax().to(self.maximum)
            self.maximum.copy_(torch.maximum(self.maximum, seen) if self.calibrated else seen)
            self.calibrated = True

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.prepared(x)
        largest_code = 2 ** (self.bits - 1) - 1
        maximum = self.maximum.to(x.dtype) if self.static else x.abs().amax(self.shared(x), keepdim=True)
        # The floor keeps Q/m finite; below it everything rounds to code 0, so zeros stay zeros.
        maximum = maximum.clamp(min=torch.finfo(x.dtype).tiny * largest_code)
        codes = (x * (largest_code / maximum)).round().clamp(-largest_code, largest_code)
        return codes, maximum / largest_code, torch.zeros_like(maximum)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={'static' if self.static else 'dynamic'}"
