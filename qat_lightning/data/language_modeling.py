"""Language modelling: the next token of every token, on the texts of one column."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from qat_lightning.data.base import Row, TaskData
from qat_lightning.data.dataset_files import read_split
from qat_lightning.data.file_formats import Column
from qat_lightning.data.padding_stats import check_padding
from qat_lightning.data.tokenizers import padded, read_tokenizer

CHUNK = 1000
"""Texts tokenized at once."""

IGNORED = -100
"""Label of what is not predicted, here the padding; torch's default of the cross-entropy."""


class LanguageModelingData(TaskData):
    """input_ids, attention_mask and "labels", (B, N): labels[n] is the token that follows input_ids[n], −100 at padding.

    With packing all texts of a split are one stream of tokens, cut into rows of `max_length`; the last row is shorter.
    A row's last label is the next row's first token, so that each token of the stream but the first is predicted once.
    Without, a row is the beginning of one text. Texts of less than two tokens make no row then.

    Args:
        path: hub id such as Salesforce/wikitext, or a folder.
        name: configuration on the hub, such as wikitext-2-raw-v1; None for none.
        text_column: the column of texts.
        tokenizer: hub id or folder; None is refused when read.
        tokenizer_revision: branch, tag or commit on the hub; None for its default.
        max_length: tokens that the model sees at once.
        packing: rows across the bounds of texts.
        separator: packed texts are joined with this one, empty texts too; None ends each (not the empty) with the
            tokenizer's end-of-text token, if it has one.
        padding: "longest" of the batch, or "max_length" for all.

    Raises:
        ValueError: when read, in words: a missing column, no text, or what `read_tokenizer` refuses.
    """

    head = "causal_language_model"

    def __init__(
        self,
        *,
        path: str,
        tokenizer: str | None,
        tokenizer_revision: str | None = None,
        name: str | None = None,
        text_column: str = "text",
        train_split: str = "train",
        validation_split: str = "validation",
        max_length: int = 512,
        packing: bool = True,
        separator: str | None = None,
        padding: Literal["longest", "max_length"] = "longest",
        **common: Any,
    ) -> None:
        super().__init__(num_labels=2, **common)  # which no language model has a use for
        check_padding(padding, self.group_by_length)
        if max_length < 2 and not packing:
            raise ValueError("data.max_length=1 leaves no token to predict: give 2 or more")
        if packing and self.group_by_length:
            raise ValueError(
                "data.group_by_length=true, but packed rows are all of one length: give data.packing=false, or leave it out"
            )
        self.path, self.name, self.task = path, name, name or Path(path).name
        self.text_column, self.splits = text_column, {"train": train_split, "validation": validation_split}
        self.tokenizer_path, self.max_length, self.padding = tokenizer, max_length, padding
        self.tokenizer_revision = tokenizer_revision
        self.packing, self.separator = packing, separator
        self.tokenizer: Any = None

    def read(self) -> tuple[Sequence[Row], Sequence[Row]]:
        self.tokenizer = read_tokenizer(
            self.tokenizer_path, self.max_length, must_pad=not self.packing, revision=self.tokenizer_revision
        )
        train, validation = (self._texts(name) for name in self.splits)
        return self._rows(train), self._rows(validation)

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        return collate_tokens(
            rows, self.tokenizer.pad_token_id or 0, self.max_length if self.padding == "max_length" else 0
        )

    def predict(self, logits: Sequence[Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What a perplexity is fed: logits (B, N, V) and labels (B, N)."""
        return logits[0], batch["labels"]

    def tokens(self, batch: Mapping[str, Tensor]) -> list[str]:
        return self.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())

    def fingerprint(self) -> str:
        """Also of the padding, which a loss that averages over it can feel."""
        padded_to = f"{self.padding} {self.max_length}" if self.padding == "max_length" else self.padding
        return hashlib.sha256(f"{super().fingerprint()} {padded_to}".encode()).hexdigest()

    def _texts(self, name: str) -> list[str]:
        """Of one split; a missing text is an empty one."""
        column = Column(self.text_column, "name the right one with data.text_column=…", text=True)
        split = read_split(self.path, self.name, self.splits[name], [column])
        texts = split[self.text_column][:]
        if wrong := [text for text in texts if not isinstance(text, str | None)]:
            raise ValueError(
                f"column {self.text_column!r} of the {name} split holds {wrong[0]!r}, which is no text in UTF-8: name a"
                " column of text with data.text_column=…"
            )
        return [text or "" for text in texts]

    def _rows(self, texts: list[str]) -> list[Row]:
        if not self.packing:
            texts_tokens = self._encode(texts, truncation=True, max_length=self.max_length)
            return [_row(tokens[:-1], tokens[1:]) for tokens in texts_tokens if len(tokens) > 1]
        joined = texts if self.separator is None else [self.separator.join(texts)]
        stream = torch.cat([self._ended(tokens) for tokens in self._encode(joined, add_special_tokens=False)])
        blocks = (part.split(self.max_length) for part in (stream[:-1], stream[1:]))
        return [_row(tokens, following) for tokens, following in zip(*blocks, strict=True) if len(tokens)]

    def _ended(self, tokens: Tensor) -> Tensor:
        """A packed text with its end-of-text token, where it has one."""
        end = self.tokenizer.eos_token_id
        if self.separator is not None or end is None or not len(tokens):
            return tokens
        return torch.cat([tokens, tokens.new_tensor([end])])

    def _encode(self, texts: list[str], **options: Any) -> list[Tensor]:
        """Tokens of each text, int32."""
        encoded = [torch.empty(0, dtype=torch.int32)]
        for start in range(0, len(texts), CHUNK):
            chunk = self.tokenizer(texts[start : start + CHUNK], verbose=False, **options)["input_ids"]
            encoded += [torch.tensor(tokens, dtype=torch.int32) for tokens in chunk]
        return encoded


def collate_tokens(rows: Sequence[Row], fill: int, length: int = 0) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels (B, N), padded with `fill` on the right to the longest, or to `length`."""
    return {
        "input_ids": padded([row["input_ids"] for row in rows], fill, length),
        "attention_mask": padded([torch.ones(len(row["input_ids"])) for row in rows], 0, length),
        "labels": padded([row["labels"] for row in rows], IGNORED, length),
    }


def _row(tokens: Tensor, following: Tensor) -> Row:
    return {"input_ids": tokens, "labels": following}
