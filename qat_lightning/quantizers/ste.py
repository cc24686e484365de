"""Straight-through estimators: the forward value is on the grid, the backward pass ignores the rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _ClippedStraightThrough(torch.autograd.Function):
    """Saves one boolean an element, not the float input."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, quantized: Tensor, clip: float) -> Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, _, clip = inputs
        ctx.save_for_backward(x.abs() < clip)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None


def straight_through(x: Tensor, quantized: Tensor, clip: float | None) -> Tensor:
    """`quantized` forward; backward ∂/∂x = 1 where −clip < x < clip, else 0 (the boundary itself gets 0).

    `clip=None` passes the gradient everywhere. `quantized` gets no gradient. Source: TernaryBERT, arXiv:2009.12812 §3.1,
    with the boundary as in the released code.
    """
    return _ClippedStraightThrough.apply(x, quantized.detach(), float("inf") if clip is None else clip)
