"""Pool the hidden states of a text's tokens to one sentence embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

Pooling = Literal["mean", "cls", "last"]

LOGITS = ("logits", "start_logits", "end_logits", "sentence_embedding")
"""Names of the outputs of heads in transformers, and of a sentence embedding in sentence-transformers."""

POOLING, MODULES = "1_Pooling/config.json", "modules.json"
"""Files in which sentence-transformers keeps the pooling, and the list of modules beside the Transformer."""

MODES: Mapping[Pooling, str] = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
}
OTHER_MODES = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")
"""Modes of sentence-transformers that are not supported."""


@dataclass(frozen=True)
class SentencePooling:
    """`pooling(hidden, mask)` → one embedding for each text, (B, D).

    A base model of transformers with an attribute `sentence_pooling` is a sentence encoder: `SignalCapture` returns the
    embeddings as its logits, and exports contain the pooling.

    Args:
        pooling: "mean" of all tokens (arXiv:1908.10084 §3), "cls" for the first one, "last" for the last one, of decoders.
        normalize: divide each embedding by its Euclidean norm.

    Raises:
        ValueError: an unknown pooling.

    >>> hidden = torch.tensor([[[3.0, 0.0], [3.0, 8.0], [9.0, 9.0]]])
    >>> SentencePooling()(hidden, torch.tensor([[1, 1, 0]]))
    tensor([[0.6000, 0.8000]])
    """

    pooling: Pooling = "mean"
    normalize: bool = True

    def __post_init__(self) -> None:
        if self.pooling not in get_args(Pooling):
            raise ValueError(f"pooling={self.pooling!r} is unknown: choose {', '.join(get_args(Pooling))}")

    def __call__(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool hidden states.

        Args:
            hidden: of the last layer, (B, N, D).
            mask: 1 for tokens and 0 for padding on the right, (B, N); None without padding.
        """
        mask = torch.ones_like(hidden[..., 0]) if mask is None else mask
        if self.pooling == "mean":
            weights = mask[..., None].to(hidden.dtype)
            pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
        elif self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            last = mask.long().sum(1) - 1
            pooled = hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1)
        return functional.normalize(pooled, dim=-1) if self.normalize else pooled


def head_outputs(model: nn.Module, output: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the output of each head by name: logits, or the sentence embedding of a model with `sentence_pooling`.

    Args:
        output: what the model returned for `inputs`.
    """
    pooling: SentencePooling | None = getattr(model, "sentence_pooling", None)
    if pooling is not None:
        return {"sentence_embedding": pooling(output["last_hidden_state"], inputs.get("attention_mask"))}
    return {name: output[name] for name in LOGITS if name in output}


def pooling_files(model: Any) -> dict[str, Any]:
    """Return the content of the files by which sentence-transformers loads the model; empty without `sentence_pooling`."""
    pooling: SentencePooling | None = getattr(model, "sentence_pooling", None)
    if pooling is None:
        return {}
    names = ["Transformer", "Pooling", *(["Normalize"] if pooling.normalize else [])]
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{name}" if number else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for number, name in enumerate(names)
    ]
    modes = {key: mode == pooling.pooling for mode, key in MODES.items()} | dict.fromkeys(OTHER_MODES, False)
    return {MODULES: modules, POOLING: {"word_embedding_dimension": model.config.hidden_size, **modes}}


def read_pooling(pooling: Mapping[str, Any], modules: object) -> SentencePooling:
    """Read the content of sentence-transformers' files.

    Args:
        pooling: of 1_Pooling/config.json.
        modules: of modules.json.

    Raises:
        ValueError: a pooling that is not supported.
    """
    chosen = [mode for mode, key in MODES.items() if pooling.get(key) is True]
    if len(chosen) != 1 or any(pooling.get(key) for key in OTHER_MODES):
        raise ValueError(f"{POOLING} must choose one pooling of {', '.join(MODES)}")
    listed = modules if isinstance(modules, list) else []
    kinds = [str(each.get("type")).rpartition(".")[2] for each in listed if isinstance(each, dict)]
    return SentencePooling(chosen[0], "Normalize" in kinds)
