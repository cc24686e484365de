"""The opened attention: softmax(q kᵀ·s + mask) v in which every intermediate tensor is the output of a named child.

Shapes: B batch, H heads, G key/value heads (G divides H), N queries, M keys, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

IMPLEMENTATION = "qat_core"
"""The name under which transformers knows the opened attention."""

HARMLESS = {"position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states", "sliding_window",
            "is_causal", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}  # fmt: skip
"""Keywords of the attention call that change nothing here: the mask already says what they say."""


class AttentionCore(nn.Module):
    """softmax(Q(q) Q(k)ᵀ·s + mask) → dropout → Q(·) Q(v), with ports on all that passes.

    Ports (identity children; watch and replace by hooks): `query`, `key`, `value`, `scores` (masked, before softmax),
    `probs` (before dropout and quantization), `context`. Quantizer slots: `query_quantizer`, `key_quantizer`,
    `probs_quantizer`, `value_quantizer`. Without quantizers the result is bitwise transformers' eager attention.
    """

    PORTS = ("query", "key", "value", "scores", "probs", "context")
    QUANTIZED = ("query", "key", "probs", "value")
    query: nn.Module
    key: nn.Module
    value: nn.Module
    scores: nn.Module
    probs: nn.Module
    context: nn.Module
    query_quantizer: nn.Module
    key_quantizer: nn.Module
    value_quantizer: nn.Module
    probs_quantizer: nn.Module

    def __init__(self) -> None:
        super().__init__()
        for port in self.PORTS:
            self.add_module(port, nn.Identity())
        for slot in self.QUANTIZED:
            self.add_module(f"{slot}_quantizer", nn.Identity())

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, dropout: float
    ) -> tuple[Tensor, Tensor]:
        """query (B, H, N, D), key and value (B, G, M, D), mask additive (B or 1, 1 or H, N, M) → (B, N, H, D), probs."""
        query, key, value = self.query(query), self.key(key), self.value(value)
        key, value = self.key_quantizer(key), self.value_quantizer(value)
        if (shared := query.shape[1] // key.shape[1]) > 1:
            key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
        scores = torch.matmul(self.query_quantizer(query), key.transpose(2, 3)) * scaling
        scores = self.scores(scores if mask is None else scores + mask)
        wide = torch.promote_types(scores.dtype, torch.float32)
        # Wide until the product, whatever autocast says: a map in bfloat16 has 3 digits, too few to compare or quantize.
        probs = self.probs(functional.softmax(scores, dim=-1, dtype=wide))
        kept = self.probs_quantizer(functional.dropout(probs, p=dropout, training=self.training))
        context = self.context(torch.matmul(kept.to(value.dtype), value))
        return context.transpose(1, 2).contiguous(), probs


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **keywords: Any,
) -> tuple[Tensor, Tensor]:
    """What transformers calls; hands over to `module.core`.

    Raises:
        ValueError: a keyword that would change the result and that the core does not know (softcap, s_aux, …).
    """
    unknown = sorted(name for name, given in keywords.items() if given is not None and name not in HARMLESS)
    if unknown:
        raise ValueError(
            f"{type(module).__name__} asks its attention for {', '.join(unknown)}, which the opened attention does not"
            " compute; use a loss and an intervention without attention sites, and no attention quantizers"
        )
    return module.core(  # type: ignore[operator]
        query, key, value, attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling, dropout
    )


def register() -> str:
    """Make the opened attention known to transformers; returns its name. Idempotent.

    A function and not an effect of importing: transformers takes seconds to import, and a mistake in a configuration
    must be told before.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(IMPLEMENTATION, attend)
    # Without a mask function of the same name transformers drops the mask silently.
    AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)
    return IMPLEMENTATION
