"""A quantized weight as what is stored of it: unsigned codes, their scale and their zero_point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qat_lightning.quantization.quantizers.affine import AffineQuantizer
from qat_lightning.quantization.quantizers.base import Quantizer


@dataclass(frozen=True)
class Stored:
    """(codes − zero_point) · scale, with the last two dimensions of groups joined again, is the weight.

    Attributes:
        codes: uint8 from 0 on, in the shape of the weight as its quantizer sees it; with groups (…, groups, group_size).
        scale: float32, broadcastable to the codes.
        zero_point: one number for all, or float32 that broadcasts like the scale.
        bits: the width of a code.
    """

    codes: Tensor
    scale: Tensor
    zero_point: float | Tensor
    bits: int


class DivergedError(ValueError):
    """Numbers that are not finite."""


def stored(weight: Tensor, quantizer: Quantizer) -> Stored:
    """What `quantizer` makes of a weight, in float32: `dequantized(stored(w, q), w.shape) == q(w)`, to the last bit.

    (A zero may have lost its sign.) Codes below zero are moved up by a whole number, and the zero point with them. Of a
    weight on the meta device shapes and types are told, and of zero points the most that there can be.

    Raises:
        DivergedError: a weight or a scale that is not finite.
    """
    if weight.is_meta:
        return _shapes(weight, quantizer)
    with torch.no_grad():
        codes, scale, zero_point = quantizer.codes(weight.detach().float())
    low, high = (float(end) for end in codes.aminmax())
    if not (torch.isfinite(scale).all() and torch.isfinite(zero_point).all() and high - low < 2**quantizer.bits):
        raise DivergedError("the quantized weight is not finite: nothing can be stored of a training that has diverged")
    lowest = min(low, 0.0)
    moved = (zero_point - lowest).float()
    same = bool((moved == moved.reshape(-1)[0]).all())
    return Stored(
        codes=(codes - lowest).to(torch.uint8).cpu(),
        scale=scale.float().cpu(),
        zero_point=float(moved.reshape(-1)[0]) if same else moved.cpu(),
        bits=quantizer.bits,
    )


def dequantized(codes: Tensor, scale: Tensor, zero_point: float | Tensor, shape: tuple[int, ...]) -> Tensor:
    """(codes − zero_point) · scale in float32, in the weight's shape."""
    return codes.float().sub_(zero_point).mul_(scale).reshape(shape)


def transposed(module: nn.Module) -> bool:
    """Whether the quantizer sees this module's weight the other way round (GPT-2's Conv1D)."""
    weight, seen = module.weight, module.quantized_weight
    return (weight.shape, weight.stride()) != (seen.shape, seen.stride())  # type: ignore[operator]


def _shapes(weight: Tensor, quantizer: Quantizer) -> Stored:
    scales = quantizer.scales(weight.shape)
    shape = quantizer.grouped(weight).shape
    flat = (scales,) if scales == 1 else (*shape[:-1], 1)
    several = isinstance(quantizer, AffineQuantizer) and scales > 1
    return Stored(
        codes=torch.empty(shape, dtype=torch.uint8, device="meta"),
        scale=torch.empty(flat, device="meta"),
        zero_point=torch.empty(flat, device="meta") if several else 0.0,
        bits=quantizer.bits,
    )
