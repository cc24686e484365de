"""The opened attention: softmax(q kᵀ·s + mask) v in which every intermediate tensor is the output of a named child.

Shapes: B batch, H heads, G key/value heads (G divides H), N queries, M keys, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qat_lightning.quantization.modules.fused_attention import additive_mask, fused_attention
from qat_lightning.quantization.quantizers.base import to_float32

IMPLEMENTATION = "qat_core"
"""The name under which transformers knows the opened attention."""

HARMLESS = {"position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states", "sliding_window",
            "is_causal", "deterministic", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}  # fmt: skip
"""Keywords of the attention call that change nothing here: the mask already says what they say."""


class InstrumentedAttention(nn.Module):
    """softmax(Q(q) Q(k)ᵀ·s + mask) → dropout → Q(·) Q(v), with ports on all that passes.

    Ports (identity children; watch and replace by hooks): `query`, `key`, `value`, `scores` (masked, before softmax),
    `probs` (before dropout and quantization), `context`. Quantizer slots: `query_quantizer`, `key_quantizer`,
    `probs_quantizer`, `value_quantizer`. Without quantizers the result is bitwise transformers' eager attention.

    Ports to watch only, as what they return is not used: what the scores are made of, `query_factor` = Q(q)·s in float32
    at least, `key_factor` = Q(k), and `mask` (zeros where there is none): scores = query_factor · key_factorᵀ + mask.

    A `lean` core makes no map where none is needed, that is without a hook on `scores` and `probs` and without a quantizer
    of the latter: torch's fused attention computes the context, equal but for rounding. It has no second derivative.

    `scaled_keys` multiplies the keys by s before the product instead of the scores after it, as DeBERTa does: other rounding.
    """

    QUANTIZED = ("query", "key", "probs", "value")

    def __init__(self) -> None:
        super().__init__()
        self.lean = self.scaled_keys = False
        self.query, self.key, self.value = nn.Identity(), nn.Identity(), nn.Identity()
        self.scores, self.probs, self.context = nn.Identity(), nn.Identity(), nn.Identity()
        self.query_factor, self.key_factor, self.mask = nn.Identity(), nn.Identity(), nn.Identity()
        self.query_quantizer: nn.Module = nn.Identity()
        self.key_quantizer: nn.Module = nn.Identity()
        self.probs_quantizer: nn.Module = nn.Identity()
        self.value_quantizer: nn.Module = nn.Identity()

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, dropout: float
    ) -> tuple[Tensor, Tensor | None]:
        """(context (B, N, H, D), probs or, of a lean core, None).

        Args:
            query: (B, H, N, D).
            key, value: (B, G, M, D).
            mask: additive (B or 1, 1 or H, N or 1, M).
        """
        query, key, value = self.query(query), self.key(key), self.value(value)
        key, value, query = self.key_quantizer(key), self.value_quantizer(value), self.query_quantizer(query)
        if has_hooks(self.query_factor):
            self.query_factor(to_float32(query) * scaling)
        if has_hooks(self.key_factor):
            self.key_factor(key)
        if has_hooks(self.mask):
            self.mask(query.new_zeros(len(query), 1, 1, 1) if mask is None else mask)
        dropout = dropout if self.training else 0.0
        read = has_hooks(self.scores) or has_hooks(self.probs) or type(self.probs_quantizer) is not nn.Identity
        probs = self._map(query, key, mask, scaling) if read or not self.lean else None
        if probs is None:
            context = fused_attention(query, for_heads(key, query), for_heads(value, query), mask, scaling, dropout)
        else:
            weights = self.probs_quantizer(functional.dropout(probs, p=dropout))
            context = torch.matmul(weights.to(value.dtype), for_heads(value, query))
        return self.context(context).transpose(1, 2).contiguous(), probs

    def _map(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """The probabilities (B, H, N, M)."""
        keys = for_heads(key, query).transpose(2, 3)
        scores = torch.matmul(query, keys / (1 / scaling)) if self.scaled_keys else torch.matmul(query, keys) * scaling
        scores = self.scores(scores if mask is None else scores + mask)
        # float32 until the product, also under autocast: a map in bfloat16 has 3 digits, too few to compare or quantize.
        return self.probs(functional.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)))


def for_heads(x: Tensor, query: Tensor) -> Tensor:
    """Keys or values (B, G, M, D), each for all the heads that share it: (B, H, M, D)."""
    shared = query.shape[1] // x.shape[1]
    # As transformers does it: the product of one shared head is another kernel than that of copies, with other rounding.
    return x.unsqueeze(2).expand(-1, -1, shared, -1, -1).flatten(1, 2) if shared > 1 else x


def has_hooks(port: nn.Module) -> bool:
    """Whether a hook watches or replaces the port's signal."""
    return bool(port._forward_hooks or port._forward_pre_hooks)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **keywords: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function that transformers calls; ValueError for a keyword that changes the result (softcap, s_aux, …)."""
    if not hasattr(module, "core"):
        raise ValueError(
            f"{type(module).__name__} calls the attention function and has no core: the row attention of its family's table"
            " must name it"
        )
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

    Not an effect of importing: transformers takes seconds to import, and a mistake in a configuration must be found before.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, attend)
    # Without a mask function of the same name transformers drops the mask silently.
    AttentionMaskInterface.register(IMPLEMENTATION, additive_mask)
    return IMPLEMENTATION
