"""What stands where a result would be that nobody reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def unread(operand: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros of this shape, and of the type that a product with `operand` would have; one number in memory."""
    return operand.new_zeros((), dtype=product_type(operand)).expand(*shape)


def product_type(operand: Tensor) -> torch.dtype:
    """The type of a product with `operand`: autocast's where it is at work (it leaves float64 alone), else its own."""
    device = operand.device.type
    cast = torch.is_autocast_enabled(device) and operand.dtype != torch.float64
    return torch.get_autocast_dtype(device) if cast else operand.dtype
