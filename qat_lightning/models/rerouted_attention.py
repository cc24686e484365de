"""Attention classes for families that do not call transformers' attention interface."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention, scaled_size_sqrt
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention


class ReroutedMPNetAttention(MPNetSelfAttention):
    """MPNet's attention through `self.core`; the relative position bias is part of the mask.

    Bitwise equal to MPNet's own where √(head width) is a power of 2, as in the released models (64); else but for rounding.
    """

    core: nn.Module

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **_: Any,
    ) -> tuple[Tensor, ...]:
        query, key, value = (
            project(hidden_states).unflatten(-1, (-1, self.attention_head_size)).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        given = [bias for bias in (position_bias, attention_mask) if bias is not None]
        mask = sum(given[1:], given[0]) if given else None
        context, probs = self.core(query, key, value, mask, self.attention_head_size**-0.5, self.dropout.p)
        projected = self.o(context.flatten(2))
        return (projected, probs) if output_attentions else (projected,)


class ReroutedDebertaAttention(DisentangledSelfAttention):
    """DeBERTa-v2's attention through `self.core`; its products with relative positions are part of the mask.

    Those products take queries and keys as the projections return them: the core quantizes the operands of the product of
    queries and keys alone.
    """

    core: nn.Module

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        query, key, value = (
            self.transpose_for_scores(project(states), self.num_attention_heads)
            for project, states in (
                (self.query_proj, hidden_states if query_states is None else query_states),
                (self.key_proj, hidden_states),
                (self.value_proj, hidden_states),
            )
        )
        products = 1 + len({"c2p", "p2c"}.intersection(self.pos_att_type))
        seen = attention_mask.bool()
        bias = torch.zeros_like(seen, dtype=query.dtype)
        if self.relative_attention:
            positions = self.pos_dropout(rel_embeddings)
            bias = self.disentangled_attention_bias(query, key, relative_pos, positions, products)
            bias = bias.unflatten(0, (-1, self.num_attention_heads))
        mask = bias.masked_fill(~seen, torch.finfo(query.dtype).min)
        query, key, value = (each.unflatten(0, (-1, self.num_attention_heads)) for each in (query, key, value))
        # A padding query sees no key, and in DeBERTa no gradient passes its scores.
        query = query.masked_fill(~seen.any(-1, keepdim=True), 0.0)
        scaling = 1 / float(scaled_size_sqrt(query, products))
        context, probs = self.core(query, key, value, mask, scaling, self.dropout.p)
        return context.flatten(2), probs if output_attentions else None


REROUTED = {MPNetSelfAttention: ReroutedMPNetAttention, DisentangledSelfAttention: ReroutedDebertaAttention}


def reroute(attention: nn.Module) -> None:
    """Let the module call its core; its parameters and submodules stay. In place."""
    attention.__class__ = REROUTED.get(type(attention), type(attention))
    attention.core.scaled_keys = isinstance(attention, DisentangledSelfAttention)  # type: ignore[union-attr]
