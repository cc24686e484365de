"""Attention classes for families that do not call transformers' attention interface."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
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


def reroute(attention: nn.Module) -> None:
    """Let the module call its core; its parameters and submodules stay. In place."""
    attention.__class__ = ReroutedMPNetAttention
