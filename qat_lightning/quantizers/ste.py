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


class _LearnedStep(torch.autograd.Function):
    """Saves its inputs, which live on anyway, and works the codes out again in the backward pass."""

    @staticmethod
    def forward(x: Tensor, step: Tensor, low: float, high: float, clip: bool, factor: float) -> Tensor:
        return (x / step).round().clamp(low, high) * step

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, step, *ctx.constants = inputs
        ctx.save_for_backward(x, step)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        x, step = ctx.saved_tensors
        low, high, clip, factor = ctx.constants
        scaled = x / step
        # A value that lies on the threshold, as the one does that set it, is inside, however x/(α/Q) rounds.
        edge = 1 + 4 * torch.finfo(x.dtype).eps
        inside = (scaled >= low * edge) & (scaled <= high * edge)
        slope = scaled.round().clamp(low, high) - torch.where(inside, scaled, 0.0)
        of_step = (gradient * slope).sum_to_size(step.shape) * factor
        return gradient * inside if clip else gradient, of_step, None, None, None, None


def learned_step(x: Tensor, step: Tensor, low: float, high: float, clip: bool, factor: float = 1.0) -> Tensor:
    """v̂ = s·round(clip(v/s, low, high)) with a gradient for the step size too.

    ∂v̂/∂s = round(v/s) − v/s inside low … high, low below it, high above it; ∂v̂/∂v = 1 inside and, with `clip`, 0 outside.
    Source: LSQ, arXiv:1902.08153 §2.1.

    Args:
        step: positive, broadcastable to x.
        factor: on the gradient of the step.
    """
    return _LearnedStep.apply(x, step, low, high, clip, factor)
