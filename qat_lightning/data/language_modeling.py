"""Language modeling: predict the next token of every token, on the texts of one column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qat_lightning.data.base import Row
from qat_lightning.data.dataset_files import read_split
from qat_lightning.data.file_formats import Column
from qat_lightning.data.tokenizers import CHUNK, IGNORED, TokenizedData, check_texts, pad_rows


class LanguageModelingData(TokenizedData):
    """Batches of input_ids, attention_mask and "labels", (B, N): labels[n] is the token after input_ids[n], −100 at padding.

    With packing, all texts of a split form one stream of tokens, cut into rows of `max_length`; the last row is shorter. A
    row's last label is the next row's first token, so that each token but the first is predicted once. Without packing, a
    row is the beginning of one text, and texts of less than two tokens are left out.

    Args:
        text_column: the column of texts.
        packing: rows may span several texts.
        separator: joins packed texts, including empty ones; None ends each text (not the empty ones) with the tokenizer's
            end-of-text token, if it has one.
        common: the arguments of `TokenizedData` and `TaskData`.

    Raises:
        ValueError: an argument out of range; when read, a missing column, no text, or no usable tokenizer.
    """

    head = "causal_language_model"

    def __init__(
        self,
        *,
        text_column: str = "text",
        max_length: int = 512,
        packing: bool = True,
        separator: str | None = None,
        **common: Any,
    ) -> None:
        super().__init__(num_labels=2, max_length=max_length, **common)  # a language model does not use num_labels
        if max_length < 2 and not packing:
            raise ValueError("max_length=1 leaves no token to predict: set max_length=2 or more")
        if packing and self.group_by_length:
            raise ValueError("group_by_length=true, but packed rows have one length: set packing=false")
        self.text_column, self.packing, self.separator = text_column, packing, separator

    def read(self) -> tuple[Sequence[Row], Sequence[Row]]:
        self.read_tokenizer(must_pad=not self.packing)
        train, validation = (self._texts(name) for name in self.splits)
        return self._rows(train), self._rows(validation)

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        length = self.max_length if self.padding == "max_length" else 0
        return collate_tokens(rows, self.tokenizer.pad_token_id or 0, length)

    def predict(self, logits: Sequence[Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return what a perplexity takes: logits (B, N, V) and labels (B, N)."""
        return logits[0], batch["labels"]

    def _texts(self, name: str) -> list[str]:
        """Read the texts of one split."""
        column = Column(self.text_column, "name the column with text_column=…", text=True)
        split = read_split(self.path, self.name, self.splits[name], [column])
        return check_texts(split[self.text_column][:], self.text_column, name, "text_column")

    def _rows(self, texts: list[str]) -> list[Row]:
        if not self.packing:
            encoded = self._encode(texts, truncation=True, max_length=self.max_length)
            return [_row(tokens[:-1], tokens[1:]) for tokens in encoded if len(tokens) > 1]
        joined = texts if self.separator is None else [self.separator.join(texts)]
        stream = torch.cat([self._with_end(tokens) for tokens in self._encode(joined, add_special_tokens=False)])
        blocks = (part.split(self.max_length) for part in (stream[:-1], stream[1:]))
        return [_row(tokens, following) for tokens, following in zip(*blocks, strict=True) if len(tokens)]

    def _with_end(self, tokens: Tensor) -> Tensor:
        """Append the end-of-text token to a packed text, if there is one."""
        end = self.tokenizer.eos_token_id
        if self.separator is not None or end is None or not len(tokens):
            return tokens
        return torch.cat([tokens, tokens.new_tensor([end])])

    def _encode(self, texts: list[str], **options: Any) -> list[Tensor]:
        """Return the tokens of each text, int32."""
        encoded = [torch.empty(0, dtype=torch.int32)]
        for start in range(0, len(texts), CHUNK):
            chunk = self.tokenizer(texts[start : start + CHUNK], verbose=False, **options)["input_ids"]
            encoded += [torch.tensor(tokens, dtype=torch.int32) for tokens in chunk]
        return encoded


def collate_tokens(rows: Sequence[Row], fill: int, length: int = 0) -> dict[str, Tensor]:
    """Pad input_ids, attention_mask and labels (B, N) on the right to the longest row, or to `length`."""
    return {
        "input_ids": pad_rows([row["input_ids"] for row in rows], fill, length),
        "attention_mask": pad_rows([torch.ones(len(row["input_ids"])) for row in rows], 0, length),
        "labels": pad_rows([row["labels"] for row in rows], IGNORED, length),
    }


def _row(tokens: Tensor, following: Tensor) -> Row:
    return {"input_ids": tokens, "labels": following}
