"""Text classification and regression: GLUE or any set of one or two text columns, from the hub or from local files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import torch
from datasets import Dataset
from torch import Tensor

from qat_lightning.data.base import Row
from qat_lightning.data.dataset_files import read_split, read_table
from qat_lightning.data.file_formats import Column
from qat_lightning.data.labels import UNLABELLED, LabelColumn, Labels, read_labels
from qat_lightning.data.tokenizers import CHUNK, TokenizedData, check_texts


class TextClassificationData(TokenizedData):
    """Batches of input_ids, attention_mask (and token_type_ids if the tokenizer makes them), (B, N), and labels (B,).

    Args:
        text_columns: one column, or two for pairs of texts.
        label_column: the column of labels: whole numbers from 0, names, or numbers for a regression (num_labels=1).
        label_names: the classes in the order of their numbers; None for the model's order, else the data's own.
        unlabelled: labels of rows without a class, beside null: such rows are left out, and counted.
        common: the arguments of `TokenizedData` and `TaskData`.

    Raises:
        ValueError: an argument out of range; when read, a missing file, column or tokenizer, an empty split, or a label
            out of range.
    """

    def __init__(
        self,
        *,
        text_columns: Sequence[str],
        label_column: str = "label",
        label_names: Sequence[str | int | bool] | None = None,
        unlabelled: Sequence[str | int] = UNLABELLED,
        max_length: int = 128,
        **common: Any,
    ) -> None:
        super().__init__(max_length=max_length, **common)
        if isinstance(text_columns, str) or not 1 <= len(text_columns) <= 2:
            raise ValueError(f"text_columns={text_columns!r} must be a list of one column, or of two for pairs")
        self.text_columns, self.label_column = list(text_columns), label_column
        names = None if label_names is None else [*map(str, label_names)]
        self.labels = LabelColumn(label_column, self.num_labels, names, unlabelled=unlabelled)
        self.without_label: Any = 0  # the label of a row to predict

    def read(self) -> tuple[Sequence[Row], Sequence[Row]]:
        self.read_tokenizer(pad_right=True)
        texts = [Column(name, "name the column with text_columns=[…]", text=True) for name in self.text_columns]
        train, validation = (
            read_split(self.path, self.name, split, [*texts, *self.extra_columns(name)])
            for name, split in self.splits.items()
        )
        self.notes = []
        labels = self.read_labels({"train": train, "validation": validation})
        self.label_names, self.notes = labels.names, [*self.notes, *labels.notes]
        return self._encode(train, "train", labels), self._encode(validation, "validation", labels)

    def extra_columns(self, split: str) -> list[Column]:
        """Return the columns of "train" or "validation" beside those of the texts."""
        return [Column(self.label_column, "name the column with label_column=…")]

    def read_labels(self, splits: Mapping[str, Dataset]) -> Labels:
        """Return the label of each row of "train" and "validation"; None for a row to leave out."""
        return read_labels(splits, replace(self.labels, model_names=self.model_names))

    def read_unlabelled(self, source: Path) -> tuple[Sequence[Row], pyarrow.Table]:
        self.read_tokenizer(pad_right=True)
        columns = [Column(name, "name the column with text_columns=[…]", text=True) for name in self.text_columns]
        table = read_table(source, columns)
        split = Dataset(table.select(self.text_columns))
        return self._encode(split, "input", Labels({"input": [self.without_label] * len(split)})), table

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        return {**self.pad(rows), "labels": torch.tensor([row["labels"] for row in rows])}

    def _encode(self, split: Dataset, name: str, labels: Labels) -> list[Row]:
        """Tokenize the rows that have a label."""
        numbers, empty = labels.splits[name], 0
        rows: list[Row] = []
        for start in range(0, len(split), CHUNK):
            chunk = split[start : start + CHUNK]
            texts = [check_texts(chunk[column], column, name, "text_columns") for column in self.text_columns]
            encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length, return_attention_mask=True)
            for row, number in enumerate(numbers[start : start + CHUNK]):
                if number is None:
                    continue
                inputs = {key: encoded[key][row] for key in encoded}
                if not inputs["input_ids"]:
                    inputs, empty = self._end_of_text(inputs, f"row {start + row} of the {name} split"), empty + 1
                rows.append(inputs | {"labels": number})
        if empty:
            end = self.tokenizer.eos_token
            self.notes.append(f"{empty} rows of the {name} split have no tokens: they are read as {end!r} alone")
        return rows

    def _end_of_text(self, inputs: Row, row: str) -> dict[str, list[int]]:
        """Return the inputs of a text without tokens: a model needs one token."""
        if (end := self.tokenizer.eos_token_id) is None:
            raise ValueError(
                f"{row} has a text without tokens, and the tokenizer has no end-of-text token: remove the row, or name an"
                " eos_token in tokenizer_config.json"
            )
        return {name: [{"input_ids": end, "attention_mask": 1}.get(name, 0)] for name in inputs}
