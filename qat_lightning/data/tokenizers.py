"""The tokenizer of a folder or of the hub, and the base of data modules that read texts with one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import AutoTokenizer

from qat_lightning.data.base import Row, TaskData, check_sizes
from qat_lightning.data.hub import require_hub, source

Padding = Literal["longest", "max_length"]

IGNORED = -100
"""The label of a token without a class or without a next token, which torch's cross-entropy ignores by default."""

CHUNK = 1000
"""Rows tokenized at once: offsets and words of a tokenizer's result take more memory than the ids that are kept."""


class TokenizedData(TaskData):
    """A data set of texts, from the hub or from a folder of files.

    Args:
        path: hub id, or a folder with `train.*` and `validation.*` as parquet, csv, tsv, json, jsonl.
        tokenizer: hub id or folder.
        tokenizer_revision: branch, tag or commit on the hub; None for its default.
        name: configuration on the hub; None for none.
        train_split, validation_split: names of the splits.
        max_length: largest number of tokens in a row.
        padding: "longest" pads to the longest row of the batch, "max_length" pads all rows alike, as the papers' code does.
    """

    def __init__(
        self,
        *,
        path: str,
        tokenizer: str | None,
        max_length: int,
        tokenizer_revision: str | None = None,
        name: str | None = None,
        train_split: str = "train",
        validation_split: str = "validation",
        padding: Padding = "longest",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check_sizes(max_length=max_length)
        if padding not in ("longest", "max_length"):
            raise ValueError(f"padding={padding!r} is unknown: choose longest or max_length")
        if self.group_by_length and padding == "max_length":
            raise ValueError(
                "padding=max_length pads all rows alike, so group_by_length=true saves nothing: set padding=longest, or"
                " remove group_by_length"
            )
        self.path, self.name, self.task = path, name, name or Path(path).name
        self.splits = {"train": train_split, "validation": validation_split}
        self.tokenizer_path, self.tokenizer_revision = tokenizer, tokenizer_revision
        self.max_length, self.padding = max_length, padding
        self.tokenizer: Any = None

    def read_tokenizer(self, must_pad: bool = True, pad_right: bool = False, words: bool = False) -> None:
        """Set `tokenizer`, see `read_tokenizer`.

        Args:
            pad_right: pad on the right whatever the tokenizer says; padding on the left would shift positions by the
                length of the other rows.
        """
        self.tokenizer = read_tokenizer(self.tokenizer_path, self.max_length, must_pad, self.tokenizer_revision, words)
        if pad_right:
            self.tokenizer.padding_side = "right"

    def pad(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Return the inputs of the rows, (B, N), without their labels."""
        inputs = [{name: value for name, value in row.items() if name != "labels"} for row in rows]
        given: Any = {"padding": self.padding, "max_length": self.max_length, "return_tensors": "pt"}
        return dict(self.tokenizer.pad(inputs, return_attention_mask=True, **given))

    def tokens(self, batch: Mapping[str, Tensor]) -> list[str]:
        return self.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())

    def fingerprint(self) -> str:
        """Hash the rows and the padding, which affects losses that average over it."""
        padding = f"{self.padding} {self.max_length}" if self.padding == "max_length" else self.padding
        return hashlib.sha256(f"{super().fingerprint()} {padding}".encode()).hexdigest()


def read_tokenizer(
    path: str | None, max_length: int, must_pad: bool = True, revision: str | None = None, words: bool = False
) -> Any:
    """Read the tokenizer of `path`, a hub id or a folder.

    Args:
        max_length: tokens in a row.
        must_pad: refuse a tokenizer without a padding token.
        revision: branch, tag or commit on the hub; None for its default.
        words: texts are lists of words, to which byte-level tokenizers (RoBERTa's) must add a space.

    Raises:
        ValueError: no path, no tokenizer there, no vocabulary, foreign code, no padding token, or fewer positions than
            `max_length`.
    """
    if path is None:  # model.path=null, of a model with random weights
        raise ValueError("there is no tokenizer: set tokenizer=FOLDER, or model.path=FOLDER")
    arguments = source(path, revision)
    require_hub({"tokenizer": path})
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True, **arguments)
        if words and tokenizer.is_fast and isinstance(tokenizer.backend_tokenizer.pre_tokenizer, ByteLevel):
            tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True, add_prefix_space=True, **arguments)
            tokenizer.backend_tokenizer.pre_tokenizer.add_prefix_space = True  # not every class does what it is given
    except Exception as error:  # any error of transformers, tokenizers or the hub's client
        raise ValueError(f"no tokenizer in {path!r} ({' '.join(str(error).split())}): set tokenizer=FOLDER") from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # made of a config.json alone
        raise ValueError(
            f"no tokenizer in {path!r}, which has no file with a vocabulary: save the tokenizer beside the model, or set"
            " tokenizer=FOLDER"
        )
    if must_pad and tokenizer.pad_token is None:
        raise ValueError(
            f"the tokenizer in {path!r} has no padding token: name one in its tokenizer_config.json, or set tokenizer=FOLDER"
        )
    if max_length > tokenizer.model_max_length:
        raise ValueError(
            f"max_length={max_length} is more than the model's {tokenizer.model_max_length} positions: set"
            f" max_length={tokenizer.model_max_length} or less"
        )
    return tokenizer


def check_texts(values: Sequence[Any], column: str, split: str, argument: str) -> list[str]:
    """Return the texts of a column, "" for a missing one; raise ValueError for anything else.

    Args:
        argument: the argument that names the column.
    """
    if wrong := [value for value in values if not isinstance(value, str | None)]:
        raise ValueError(
            f"column {column!r} of the {split} split contains {wrong[0]!r}, which is not text in UTF-8: name a column of text"
            f" with {argument}=…"
        )
    return [value or "" for value in values]


def pad_rows(values: Sequence[Tensor], fill: int, length: int = 0) -> Tensor:
    """Pad rows (N, …) of whole numbers on the right to int64 (B, longest N or `length`, …).

    >>> pad_rows([torch.tensor([1, 2]), torch.tensor([3])], fill=0)
    tensor([[1, 2],
            [3, 0]])
    """
    longest = max(length, *(len(value) for value in values))
    batch = torch.full((len(values), longest, *values[0].shape[1:]), fill)
    for row, value in zip(batch, values, strict=True):
        row[: len(value)] = value
    return batch
