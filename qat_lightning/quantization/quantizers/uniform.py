"""Uniform symmetric quantization, the papers' 8-bit activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qat_lightning.quantization.quantizers.base import Granularity, IntegerGrid, Quantizer, Scale, arguments


class UniformQuantizer(Quantizer):
    """x̂ = round(x·s)/s with s = Q/m, Q = 2^(bits−1) − 1 and m = max|x| of what shares a scale; 2Q + 1 levels.

    Source: TernaryBERT, arXiv:2009.12812 §3.2; symmetric as in the released code.

    Args:
        scale: "dynamic" takes m from the tensor at hand, in training and evaluation, as the papers do; with granularity
            "per_tensor" a sample's result then depends on its batch. "static" takes m from `calibrate`, or the clip itself
            before that, so a sample's result never depends on its batch.

    Raises:
        ValueError: bits outside 2…8; static scale with granularity "per_channel" or without a clip.
    """

    kind, source = "uniform", "arXiv:2009.12812"
    bits_range, has_zero_point, code_type = (2, 8), False, torch.int8
    maximum: Tensor

    def __init__(
        self,
        bits: int = 8,
        granularity: Granularity = "per_tensor",
        clip: float | None = 2.5,
        scale: Scale = "dynamic",
        group_size: int | None = None,
    ) -> None:
        super().__init__(bits, granularity, clip, group_size)
        self.choose_scale(scale)
        if self.static and clip is not None:
            self.register_buffer("maximum", torch.tensor(float(clip)))

    def levels(self) -> int:
        return int(2**self.bits - 1)

    def spec(self) -> dict[str, Any]:
        return arguments(self)

    def integer_grid(self) -> IntegerGrid | None:
        largest_code = float(2 ** (self.bits - 1) - 1)
        step = self.maximum / largest_code if self.static else None
        return IntegerGrid(-largest_code, largest_code, step, self.clip) if self.granularity == "per_tensor" else None

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        if self.static:
            seen = self.prepared(x).abs().amax().to(self.maximum)
            self.maximum.copy_(torch.maximum(self.maximum, seen) if self.calibrated else seen)
            self.calibrated = True

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, largest_code = self.widened(x), 2 ** (self.bits - 1) - 1
        maximum = self.maximum.to(x.dtype) if self.static else self._maximum(x)
        # The floor keeps Q/m finite; below it everything rounds to code 0, so zeros stay zeros.
        maximum = maximum.clamp(min=torch.finfo(x.dtype).tiny * largest_code)
        # A value beyond the clip, which is at least the maximum, is beyond the largest code.
        codes = (x * (largest_code / maximum)).round_().clamp_(-largest_code, largest_code)
        return codes, maximum / largest_code, torch.zeros_like(maximum)

    def _maximum(self, x: Tensor) -> Tensor:
        """max|x| of what shares a scale, after the clip."""
        compiling = torch.compiler.is_compiling()
        maximum = x.abs().amax(self.shared(x), keepdim=True) if compiling else self._largest(x)
        return maximum if self.clip is None else maximum.clamp(max=self.clip)

    def _largest(self, x: Tensor) -> Tensor:
        """The same without a second tensor of the size of x."""
        if self.granularity == "per_tensor":
            low, high = (end.reshape([1] * x.dim()) for end in torch.aminmax(x))
        else:
            low, high = torch.aminmax(x, dim=-1, keepdim=True)
        return torch.maximum(-low, high)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={'static' if self.static else 'dynamic'}"
