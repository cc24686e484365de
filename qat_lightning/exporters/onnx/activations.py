"""Activations in an ONNX graph: as 8-bit whole numbers with one scale where their quantizer allows, else in float32."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from qat_lightning.quantization.quantizers.base import Quantizer


def quantize_linear(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Add the operator QuantizeLinear to an exported graph: clip(round(x / scale) + zero, 0, 255), uint8, one scale."""
    return symbolic("QuantizeLinear", [x, scale, zero], dtype=torch.uint8, shape=x.shape)


def multiply_integers(left: Tensor, right: Tensor, left_zero: Tensor, right_zero: Tensor) -> Tensor:
    """Add the operator MatMulInteger to an exported graph: (left − left_zero)(right − right_zero), int32 (…, R, N).

    The operands are 8-bit integers (…, R, K) and (…, K, N).
    """
    shape = [*left.shape[:-1], right.shape[-1]]
    return symbolic("MatMulInteger", [left, right, left_zero, right_zero], dtype=torch.int32, shape=shape)


class Integers(NamedTuple):
    """(codes − zero) · scale; codes uint8 in the shape of what was quantized, scale float32, zero uint8, both scalars."""

    codes: Tensor
    scale: Tensor
    zero: Tensor


class IntegerInput(nn.Module):
    """x → Integers, by the arithmetic of training: symmetric, one scale for the tensor.

    The zero point is the position of code 0 when the lowest code is moved to 0: 127 for 8 symmetric bits, so
    values below the range saturate by themselves. Values above are cut after rounding, in bytes: 8 times less to move
    than cutting the float32 values first, with the same result.

    Args:
        low, high: the quantizer's least and largest code.
        scale: one step; None takes it from the tensor at hand, max|x|/high.
        clip: the most that max|x| can be; None for no limit.
        positive: x has no negative values (probabilities), so max|x| = max x.
    """

    zero: Tensor
    step: Tensor | None

    def __init__(
        self, low: float, high: float, scale: Tensor | None, clip: float | None = None, positive: bool = False
    ) -> None:
        super().__init__()
        self.high, self.clip, self.positive = high, clip, positive
        self.register_buffer("zero", torch.tensor(-int(low), dtype=torch.uint8))
        self.top = int(high - low)
        self.register_buffer("step", None if scale is None else scale.detach().reshape(()).float())
        within = scale is None and (clip is None or (positive and clip >= 1))
        self.cut = high - low < 255 and not within

    def forward(self, x: Tensor) -> Integers:
        scale = self.step
        if scale is None:
            largest = x.max() if self.positive else x.abs().max()
            # The floor is the quantizer's: a tensor of zeros stays zeros.
            scale = largest.clamp(min=torch.finfo(torch.float32).tiny * self.high, max=self.clip) / self.high
        codes = quantize_linear(x, scale, self.zero)
        return Integers(codes.clamp(0, self.top) if self.cut else codes, scale, self.zero)


class Simulated(nn.Module):
    """x → the nearest values of the quantizer's grid, in float32, by the quantizer's own `codes`."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        codes, scale, zero_point = self.quantizer.codes(x)
        return ((codes - zero_point) * scale).reshape(x.shape)


def at_work(quantizer: nn.Module) -> bool:
    """Return whether the module is a quantizer that is switched on."""
    return isinstance(quantizer, Quantizer) and quantizer.enabled


def integer_input(quantizer: nn.Module, positive: bool = False) -> IntegerInput | None:
    """Return the integer form of a quantizer; None if it has no integer codes with one scale for the tensor."""
    if not at_work(quantizer):
        return None
    assert isinstance(quantizer, Quantizer)
    classes = type(quantizer).__mro__
    codes_by, grid_by = (next(kind for kind in classes if name in vars(kind)) for name in ("codes", "integer_grid"))
    grid = quantizer.integer_grid()
    # A subclass that changes the codes alone does not have its base's grid.
    return IntegerInput(*grid, positive) if grid is not None and issubclass(grid_by, codes_by) else None


def float_input(quantizer: nn.Module) -> nn.Module:
    """Return a module that rounds to the quantizer's grid in float32; modules of other classes stay."""
    if not isinstance(quantizer, Quantizer):
        return quantizer
    return Simulated(quantizer) if quantizer.enabled else nn.Identity()
