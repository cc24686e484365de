"""Own quantizers: one that describes itself with `spec`, so that it can be exported, and one that does not."""

import torch
from torch import Tensor

from qat_lightning.quantization.quantizers import Quantizer, UniformQuantizer


class HalfRangeQuantizer(UniformQuantizer):
    """A uniform quantizer whose scale is half of the largest magnitude; values beyond are clamped."""

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes, scale, zero_point = super().codes(x)
        largest = 2 ** (self.bits - 1) - 1
        return (2 * codes).clamp_(-largest, largest), scale / 2, zero_point

    def integer_grid(self) -> None:
        """The scale of a UniformQuantizer is another one."""


class SignQuantizer(Quantizer):
    """±1 times the mean magnitude; it defines no `spec`."""

    bits_range, has_zero_point = (1, 1), True

    def __init__(self) -> None:
        super().__init__(1)

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale = 2 * self.prepared(x).abs().mean().reshape([1] * x.dim())
        return (x >= 0).to(scale.dtype), scale, torch.full_like(scale, 0.5)
