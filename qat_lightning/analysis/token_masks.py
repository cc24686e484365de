"""Masks of valid tokens and of token classes. Shapes: B batch, N tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from qat_lightning.models.capture import Batch

CLS, SEP = "[CLS]", "[SEP]"
CLASSES = {CLS: ("[CLS]", "<s>"), SEP: ("[SEP]", "</s>"), "punctuation": (",", ".")}
"""Class → names of its tokens in tokenizers. Punctuation is comma and period, as in arXiv:2211.11014 Fig. 6."""

WORD_MARKS = "Ġ▁"
"""The marks of RoBERTa's and SentencePiece's tokenizers for the space before a word."""


def token_mask(batch: Batch | None, like: Tensor) -> Tensor:
    """Return the mask of valid tokens, boolean (B, N), or (N,) without padding, on the device of `like`."""
    mask = None if batch is None else batch.get("attention_mask")
    if mask is None:
        return torch.ones(like.shape[-1], dtype=torch.bool, device=like.device)
    return mask.to(like.device).bool()


def first_token(tokens: Tensor) -> Tensor:
    """Return the first valid token of each sample, boolean like `tokens` (…, N).

    >>> first_token(torch.tensor([[False, True, True]]))
    tensor([[False,  True, False]])
    """
    return tokens & (tokens.cumsum(-1) == 1)


def class_ids(names: Sequence[str], ids: Collection[int]) -> dict[str, list[int]]:
    """Return class → the ids of its tokens, for the tokens of a text or of the vocabulary.

    For the vocabulary: `class_ids(tokenizer.convert_ids_to_tokens(range(len(tokenizer))), range(len(tokenizer)))`.
    """
    if len(names) != len(ids):
        raise ValueError(f"{len(names)} names of tokens for {len(ids)} ids: pass one name for each id")
    pairs = [(name.lstrip(WORD_MARKS), int(number)) for name, number in zip(names, ids, strict=True)]
    return {kind: sorted({number for name, number in pairs if name in known}) for kind, known in CLASSES.items()}


def token_classes(batch: Batch, ids: Mapping[str, Collection[int]]) -> dict[str, Tensor]:
    """Return class → mask of its valid tokens, boolean (B, N); then "other" (in no class) and "all".

    `ids` is class → the ids of its tokens, see `class_ids`. Raises ValueError for a batch without `input_ids`.
    """
    if "input_ids" not in batch:
        raise ValueError("the batch has no input_ids, so its tokens have no classes: pass the classes of an image")
    tokens = batch["input_ids"]
    every = token_mask(batch, tokens).expand_as(tokens)
    classes = {kind: torch.isin(tokens, torch.tensor(list(of), dtype=tokens.dtype, device=tokens.device)) & every
               for kind, of in ids.items()}  # fmt: skip
    other = every.clone()
    for where in classes.values():
        other &= ~where
    return {**classes, "other": other, "all": every}
