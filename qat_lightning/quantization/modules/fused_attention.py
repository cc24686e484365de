"""Attention without a map in memory: torch's fused function, and masks no larger than they need be.

Shapes: B batch, H heads, N queries, M keys, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, dropout: float
) -> Tensor:
    """softmax(q kᵀ·s + mask) v (B, H, N, D) by torch's fused attention, whose memory is linear in the length.

    Without dropout, that is: with it torch makes the maps on a CPU.
    """
    if mask is not None and mask.dtype != query.dtype:
        # Off −∞, to which half precision rounds float32's smallest number: a row without any key would be NaN.
        mask = mask.clamp(min=torch.finfo(query.dtype).min).to(query.dtype)
    with torch.autocast(query.device.type, enabled=False):  # it would round the mask again
        return functional.scaled_dot_product_attention(
            query, key.to(query.dtype), value.to(query.dtype), mask, dropout, scale=scaling
        )


def additive_mask(dtype: torch.dtype = torch.float32, **keywords: Any) -> Tensor | None:
    """transformers' eager mask, 0 and the smallest number, (B, 1, N or 1, M): one row where all queries see the same keys."""
    from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

    keywords |= {"allow_is_causal_skip": False}
    if keywords.get("mask_function") is bidirectional_mask_function:
        keywords |= {"q_length": 1}
    seen = sdpa_mask(**keywords)
    return None if seen is None else torch.where(seen, seen.new_zeros((), dtype=dtype), torch.finfo(dtype).min)
