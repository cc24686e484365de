"""A quantized weight as what is stored of it: unsigned codes, their scale and their zero_point."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qat_lightning.quantization.quantizers.base import Quantizer


@dataclass(frozen=True)
class Stored:
    """(codes − zero_point) · scale, with the last two dimensions of groups joined again, is the weight."""

    codes: Tensor  # uint8 from 0 on, in the shape that the quantizer sees; with groups (…, groups, group_size)
    scale: Tensor  # float32, broadcastable to the codes
    zero_point: float | Tensor  # one number for all, or float32 that broadcasts like the scale
    bits: int  # the width of a code


class DivergedError(ValueError):
    """Numbers that are not finite."""


def stored(weight: Tensor, quantizer: Quantizer) -> Stored:
    """What `quantizer` makes of a weight, in float32: `dequantized(stored(w, q), w.shape) == q(w)`, to the last bit.

    (A zero may have lost its sign.) Codes below zero are moved up by a whole number, and the zero point with them.

    Raises:
        DivergedError: a weight or a scale that is not finite.
        ValueError: codes that do not fit into the quantizer's bits.
    """
    with torch.no_grad():
        codes, scale, zero_point = quantizer.codes(weight.detach().float())
    low, high = (float(end) for end in codes.aminmax())
    if not (math.isfinite(high - low) and torch.isfinite(scale).all() and torch.isfinite(zero_point).all()):
        raise DivergedError("the quantized weight is not finite: a training that has diverged cannot be stored")
    lowest = min(low, 0.0)
    if high - lowest >= 2**quantizer.bits:
        raise ValueError(f"{type(quantizer).__name__}: codes {low:g} to {high:g} do not fit into bits={quantizer.bits}")
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
    return weight.dim() == 2 and (weight.shape, weight.stride()) != (seen.shape, seen.stride())  # type: ignore[operator]
