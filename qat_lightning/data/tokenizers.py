"""The tokenizer of a folder or of the hub, and rows of tokens brought to one length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from qat_lightning.data.hub import require_hub
from qat_lightning.data.remote_code import source


def read_tokenizer(
    path: str | None,
    max_length: int,
    must_pad: bool = True,
    revision: str | None = None,
) -> Any:
    """The tokenizer of `path`, a hub id or a folder.

    Args:
        must_pad: refuse one that has no padding token.
        revision: branch, tag or commit on the hub; None for its default.

    Raises:
        ValueError: in words: no path, no tokenizer there, one without a vocabulary, one that code of its own would make, no
            padding token, or fewer positions than `max_length`.
    """
    if path is None:  # model.path=null, as a model of random weights has it
        raise ValueError("there is no tokenizer to read texts with: give model.path=FOLDER or data.tokenizer=FOLDER")
    given = source(path, revision)
    require_hub({"data.tokenizer": path})
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True, **given)
    except Exception as error:  # of transformers, tokenizers or the hub's client, for whatever lies there
        raise ValueError(
            f"no tokenizer in {path!r}: give model.path or data.tokenizer a folder that holds one"
            f" ({' '.join(str(error).split())})"
        ) from error
    if set(tokenizer.get_vocab()) <= set(
        tokenizer.all_special_tokens
    ):  # made of a config.json alone: each word is unknown
        raise ValueError(
            f"no tokenizer in {path!r}, which has no file with a vocabulary: save the tokenizer in the same folder as the model,"
            " or give data.tokenizer=FOLDER"
        )
    if must_pad and tokenizer.pad_token is None:
        raise ValueError(
            f"the tokenizer in {path!r} has no padding token: name one in its tokenizer_config.json,"
            " or give data.tokenizer another"
        )
    if max_length > tokenizer.model_max_length:
        raise ValueError(
            f"data.max_length={max_length} is beyond the model's {tokenizer.model_max_length} positions: give"
            f" data.max_length={tokenizer.model_max_length} or less"
        )
    return tokenizer


def padded(values: Sequence[Tensor], fill: int, length: int = 0) -> Tensor:
    """Rows (N, …) of whole numbers → int64 (B, longest N or `length`, …), filled up on the right."""
    longest = max(length, *(len(value) for value in values))
    batch = torch.full((len(values), longest, *values[0].shape[1:]), fill)
    for row, value in zip(batch, values, strict=True):
        row[: len(value)] = value
    return batch
