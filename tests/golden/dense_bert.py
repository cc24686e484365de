"""BERT for sequence classification written out densely in float64, without dropout. Imports nothing of qat_lightning.

Source: arXiv:1810.04805 and arXiv:1706.03762 §3; which tensors are quantized, arXiv:2101.05938, released code.
`at(place, x)` stands where a tensor may be quantized; places are named as a quantized model's modules are:
`….query.weight_quantizer`, `….query.input_quantizer`, `….self.core.probs_quantizer`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tests.golden.reference import MASK, Signals, layer_norm, split_heads

At = Callable[[str, Tensor], Tensor]
SITES = ("hidden", "scores", "probs", "context", "projection", "residual", "output", "logits")


def untouched(place: str, x: Tensor) -> Tensor:
    return x


@dataclass
class Bert:
    """`Bert(state, heads, padding_index, at)(batch)` → signals, one tensor for each layer."""

    state: dict[str, Tensor]
    heads: int
    padding_index: int
    at: At = untouched

    def __call__(self, batch: dict[str, Tensor]) -> Signals:
        signals: Signals = {site: [] for site in SITES}
        x = self._embedded(batch["input_ids"])
        signals["hidden"].append(x)
        mask = (1.0 - batch["attention_mask"].to(x.dtype))[:, None, None, :] * MASK
        depth = 1 + max(int(name.split(".")[3]) for name in self.state if name.startswith("bert.encoder.layer."))
        for layer in range(depth):
            x = self._layer(f"bert.encoder.layer.{layer}", x, mask, signals)
            signals["hidden"].append(x)
        pooled = torch.tanh(self._linear("bert.pooler.dense", x[:, 0]))
        signals["logits"].append(pooled @ self.state["classifier.weight"].T + self.state["classifier.bias"])
        return signals

    def _embedded(self, tokens: Tensor) -> Tensor:
        place = "bert.embeddings"
        words = self.at(f"{place}.word_embeddings.weight_quantizer", self.state[f"{place}.word_embeddings.weight"])
        positions = self.at(
            f"{place}.position_embeddings.weight_quantizer", self.state[f"{place}.position_embeddings.weight"]
        )
        x = functional.embedding(tokens, words, self.padding_index) + positions[: tokens.shape[1]]
        return layer_norm(self.state, f"{place}.LayerNorm", x + self.state[f"{place}.token_type_embeddings.weight"][0])

    def _layer(self, name: str, x: Tensor, mask: Tensor, signals: Signals) -> Tensor:
        core = f"{name}.attention.self.core"
        query, key, value = (
            self.at(
                f"{core}.{part}_quantizer", split_heads(self._linear(f"{name}.attention.self.{part}", x), self.heads)
            )
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + mask
        probs = torch.softmax(scores, -1)
        context = self.at(f"{core}.probs_quantizer", probs) @ value
        merged = context.permute(0, 2, 1, 3).reshape(x.shape)
        projection = self._linear(f"{name}.attention.output.dense", merged)
        residual = projection + x
        output = layer_norm(self.state, f"{name}.attention.output.LayerNorm", residual)
        here = {"scores": scores, "probs": probs, "context": context, "projection": projection, "residual": residual}
        for site, signal in (here | {"output": output}).items():
            signals[site].append(signal)
        inner = functional.gelu(self._linear(f"{name}.intermediate.dense", output))
        return layer_norm(self.state, f"{name}.output.LayerNorm", self._linear(f"{name}.output.dense", inner) + output)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        weight = self.at(f"{name}.weight_quantizer", self.state[f"{name}.weight"])
        return self.at(f"{name}.input_quantizer", x) @ weight.T + self.state[f"{name}.bias"]
