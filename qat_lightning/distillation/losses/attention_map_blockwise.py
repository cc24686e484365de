"""The divergence of attention maps from their factors, some rows at a time: no complete map is in memory.

Shapes: B batch, H heads, G key heads (G divides H), N queries, M keys, D head width, R queries of one block.

A block holds whole rows, all keys of R queries, and so needs none of the running maxima of flash attention
(arXiv:2205.14135), which goes along the keys: memory is linear in the length either way, and a probability is known at
once, so the clamp of the dense loss can be kept. The gradient is worked out with the value: dq = dS·k, dk = dSᵀ·q, where for
one row dS = w·(P^S·Σ P^T − P^T), the sum over what is not clamped. Only dq and dk wait for the backward pass.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

ELEMENTS = 2**20
"""The largest number of map elements in a block of more than one row: 4 MiB in float32, which fits into caches."""


class Factors(NamedTuple):
    """The factors of scores: scores = query · keyᵀ + mask."""

    query: Tensor  # (B, H, N, D), scaled
    key: Tensor  # (B, G, M, D)
    mask: Tensor  # additive, broadcastable to (B, H, N, M)


class Settings(NamedTuple):
    """Settings of the divergence of one layer."""

    weights: Tensor  # of each query, (B or 1, 1, N)
    temperature: float  # τ, by which scores are divided
    smallest: float  # probabilities are clamped below at this
    elements: int  # of a map, in one block


def divergence(student: Factors, teacher: Factors, settings: Settings) -> Tensor:
    """Compute Σ_bhi w_bi Σ_j P^T_ij · log(P^T_ij / P^S_ij) with P = max(softmax(scores / τ), smallest).

    The gradient goes to the student's query and key; there is no second derivative.

    Raises:
        ValueError: maps of different shapes; a second derivative.
    """
    shapes = [(*factors.query.shape[:3], factors.key.shape[2]) for factors in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"attention maps of shapes {shapes[0]} and {shapes[1]} cannot be compared")
    return _Divergence.apply(student.query, student.key, student.mask, teacher, settings)


class _Divergence(torch.autograd.Function):
    """The function `divergence` with its gradients, which the forward pass computes."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, mask: Tensor, teacher: Factors, settings: Settings) -> Tensor:
        learning = any(ctx.needs_input_grad[:2])
        with torch.autocast(query.device.type, enabled=False):  # a map in bfloat16 has 3 digits, too few to compare
            value, *gradients = _summed(Factors(query, key, mask), teacher, settings, learning)
        ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise ValueError("implementation='blockwise' has no second derivative: give implementation='dense'")
        query, key = ctx.saved_tensors
        return above[0] * query, above[0] * key, None, None, None


def _summed(own: Factors, other: Factors, settings: Settings, learning: bool) -> tuple[Tensor, ...]:
    """Compute the divergence and, if `learning`, its gradients by query and key."""
    total = own.query.new_zeros(())
    d_query, d_key = (torch.empty_like(own.query), torch.zeros_like(own.key)) if learning else (None, None)
    samples, heads, queries, _ = own.query.shape
    height = max(1, settings.elements // (samples * heads * own.key.shape[2]))
    for rows in (slice(start, min(start + height, queries)) for start in range(0, queries, height)):
        logs, others = (_log_probabilities(factors, rows, settings.temperature) for factors in (own, other))
        others = others.clamp_(min=math.log(settings.smallest))
        weights, probs = settings.weights[..., rows, None], others.exp()
        clamped = logs.clamp(min=math.log(settings.smallest))
        total += (others.sub_(clamped).mul_(probs).sum(-1, keepdim=True) * weights).sum()
        if d_query is not None and d_key is not None:
            pulled = probs.mul_(logs == clamped)  # what is clamped has no gradient of its own
            d_scores = logs.exp_().mul_(pulled.sum(-1, keepdim=True)).sub_(pulled).mul_(weights / settings.temperature)
            grouped = _by_key_head(d_scores, own.key)
            d_query[:, :, rows] = (grouped @ own.key).reshape_as(d_query[:, :, rows])
            d_key += grouped.mT @ _by_key_head(own.query[:, :, rows], own.key)
    return (total,) if d_query is None or d_key is None else (total, d_query, d_key)


def _log_probabilities(factors: Factors, rows: slice, temperature: float) -> Tensor:
    """Compute log softmax(scores / τ) of these rows, (B, H, R, M)."""
    query = factors.query[:, :, rows]
    mask = factors.mask if factors.mask.shape[-2] == 1 else factors.mask[..., rows, :]
    # Off −∞, which a row without any key would turn into NaN.
    mask = (mask / temperature).clamp(min=torch.finfo(mask.dtype).min)
    scores = _by_key_head(query / temperature, factors.key) @ factors.key.mT
    return scores.reshape(*query.shape[:3], -1).add_(mask).log_softmax(-1)


def _by_key_head(tensor: Tensor, key: Tensor) -> Tensor:
    """Reshape (B, H, R, ·) to (B, G, H/G·R, ·): consecutive heads share a key."""
    return tensor.reshape(len(tensor), key.shape[1], -1, tensor.shape[-1])
