"""All 2^bits levels between two ends: asymmetric activations, and 4-bit weights that really have 16 levels."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from qat_lightning.quantization.quantizers.base import Granularity, Quantizer, Scale, arguments, check_choice

Range = Literal["minmax", "symmetric", "mean"]


class AffineQuantizer(Quantizer):
    """x̂ = round((x − low)/s)·s + low with s = (high − low)/(2^bits − 1), x clamped to low … high first.

    With scale="dynamic" the ends are those of the tensor at hand; zero is then on the grid only by chance, but a tensor of
    zeros stays zeros. With "static" they are those that `calibrate` has seen, or ∓clip before that, the grid is moved so
    that zero is on it, and a sample's result does not depend on its batch.

    Args:
        range: "minmax": low = min x, high = max x, the asymmetric quantizer that TernaryBERT's text argues for
            (arXiv:2009.12812 §3.2; its released code uses the symmetric one) · "symmetric": ∓max|x| · "mean": ∓T, T the
            mean of |x| over |x| > mean|x|, KD-QAT's 4-bit weights (arXiv:2211.11014, released code, whose rounding made
            17 levels of it; here it has 16).
    """

    kind = "affine"
    bits_range, code_type = (2, 8), torch.uint8
    ends: Tensor

    def __init__(
        self,
        bits: int = 8,
        granularity: Granularity = "per_tensor",
        clip: float | None = 2.5,
        range: Range = "minmax",
        scale: Scale = "dynamic",
        group_size: int | None = None,
    ) -> None:
        super().__init__(bits, granularity, clip, group_size)
        self.choose_scale(scale)
        if self.static and clip is not None:
            self.register_buffer("ends", torch.tensor([-float(clip), float(clip)]))
        self.range = check_choice(range, Range, "range")
        self.source = "arXiv:2211.11014" if range == "mean" else "arXiv:2009.12812"

    def spec(self) -> dict[str, Any]:
        return arguments(self)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        if self.static:
            low, high = (end.flatten()[0].to(self.ends) for end in self._ends(self.prepared(x)))
            if self.calibrated:
                low, high = torch.minimum(low, self.ends[0]), torch.maximum(high, self.ends[1])
            self.ends.copy_(torch.stack([low, high]))
            self.calibrated = True

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.prepared(x)
        low, high = self.ends.to(x.dtype) if self.static else self._ends(x)
        levels, tiny = 2**self.bits - 1, torch.finfo(x.dtype).tiny
        step = (high - low) / levels
        # Where all values are one: code 0 with scale |low| and zero point ∓1 is that value, and zeros stay zeros.
        step = torch.where(step > tiny, step, low.abs())
        floored = step.clamp(min=tiny)
        if self.static:
            zero_point = (-low / floored).round()
        elif self.range == "minmax":
            zero_point = -low / floored
        else:  # zero is exactly in the middle, without the rounding of a division
            zero_point = torch.full_like(low, levels / 2)
        codes = (x / floored).round() + zero_point if self.static else ((x - low) / floored).round()
        return codes.clamp(0, levels), step, zero_point

    def _ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shared = self.shared(x)
        if self.range == "minmax":
            return x.amin(shared, keepdim=True), x.amax(shared, keepdim=True)
        magnitude = x.abs()
        if self.range == "symmetric":
            end = magnitude.amax(shared, keepdim=True)
        else:
            large = magnitude > magnitude.mean(shared, keepdim=True)
            # Where all magnitudes are equal none is above the mean: then T is the mean itself.
            kept = large | ~large.any(-1, keepdim=True) if shared == [-1] else large | ~large.any()
            end = (magnitude * kept).sum(shared, keepdim=True) / kept.sum(shared, keepdim=True)
        return -end, end

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, range={self.range}"
