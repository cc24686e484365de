"""Straight-through estimators: the forward value is on the grid, the backward pass ignores the rounding."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class _ClippedStraightThrough(torch.autograd.Function):
    """Saves one byte an element, not the float input; of a parameter, which exists anyway, nothing.

    Comparisons write floats, 0 and 1, and bytes are made of these: to booleans they take a CPU three times as long.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, quantized: Tensor, clip: float) -> Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, _, clip = inputs
        ctx.clip = clip
        if clip < math.inf:
            ctx.save_for_backward(x if isinstance(x, nn.Parameter) else x.abs().lt_(clip).to(torch.int8))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # Read once: activation checkpointing returns each saved tensor a single time.
        (saved,) = ctx.saved_tensors or (None,)
        if saved is None:
            return gradient, None, None
        if saved.dtype == torch.int8:
            return saved.to(gradient.dtype).mul(gradient), None, None
        return torch.ops.aten.hardtanh_backward(gradient, saved, -ctx.clip, ctx.clip), None, None


def straight_through(x: Tensor, quantized: Tensor, clip: float | None) -> Tensor:
    """`quantized` forward; backward ∂/∂x = 1 where −clip < x < clip, else 0 (the boundary itself gets 0).

    `clip=None` passes the gradient everywhere. `quantized` gets no gradient. Source: TernaryBERT, arXiv:2009.12812 §3.1,
    with the boundary as in the released code.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return quantized.detach()  # no mask is needed
    return _ClippedStraightThrough.apply(x, quantized.detach(), float("inf") if clip is None else clip)


class _LearnedStep(torch.autograd.Function):
    """Saves its inputs, which exist anyway, and computes the codes again in the backward pass."""

    @staticmethod
    def forward(
        x: Tensor, step: Tensor, quantized: Tensor, low: float, high: float, clip: bool, factor: float
    ) -> Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, step, _, *ctx.constants = inputs
        ctx.save_for_backward(x, step)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None, None, None]:
        x, step = ctx.saved_tensors
        low, high, clip, factor = ctx.constants
        scaled = x / step
        # A value on the threshold, as the largest one after minmax, is inside, however x/(α/Q) rounds.
        edge = 1 + 4 * torch.finfo(x.dtype).eps
        inside = (scaled >= low * edge).logical_and_(scaled <= high * edge)
        slope = scaled.round().clamp_(low, high).sub_(_where(inside, scaled))
        of_step = (gradient * slope).sum_to_size(step.shape) * factor
        return _where(inside, gradient) if clip else gradient, of_step, None, None, None, None, None


def learned_step(
    x: Tensor, step: Tensor, quantized: Tensor, low: float, high: float, clip: bool, factor: float = 1.0
) -> Tensor:
    """v̂ = s·round(clip(v/s, low, high)) with a gradient for the step size (positive, broadcastable to x) too.

    ∂v̂/∂s = factor·(round(v/s) − v/s inside low … high, low below it, high above it); ∂v̂/∂v = 1 inside and, with `clip`,
    0 outside. v̂ itself, `quantized`, gets no gradient. Source: LSQ, arXiv:1902.08153 §2.1.
    """
    return _LearnedStep.apply(x, step, quantized.detach(), low, high, clip, factor)


def _where(inside: Tensor, x: Tensor) -> Tensor:
    """x where `inside`, else 0; a product with booleans would be many times slower on a CPU."""
    return x.where(inside, x.new_zeros(()))
