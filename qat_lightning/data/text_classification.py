"""Text classification and regression: GLUE or any set of one or two text columns, from the hub or from local files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from torch import Tensor

from qat_lightning.data.base import Row, TaskData
from qat_lightning.data.class_names import UNLABELLED, LabelColumn, as_names
from qat_lightning.data.dataset_files import read_split
from qat_lightning.data.file_formats import Column
from qat_lightning.data.labels import Labels, read_labels
from qat_lightning.data.padding_stats import check_padding
from qat_lightning.data.tokenizers import read_tokenizer

CHUNK = 1000
"""Rows tokenized at once: what a tokenizer remembers of each (offsets, words) takes more memory than the numbers kept."""


class TextClassificationData(TaskData):
    """input_ids, attention_mask (and token_type_ids where the tokenizer makes them), (B, N), padded to the batch's longest.

    Args:
        path: hub id such as nyu-mll/glue, or a folder with `train.*` and `validation.*` as parquet, csv, tsv, json, jsonl.
        name: configuration on the hub, such as cola; None for none.
        text_columns: one, or two for pairs.
        label_column: whole numbers from 0, names, or numbers for a regression (num_labels=1).
        label_names: the classes in the order of their numbers; None for the model's order, else the data's own.
        unlabelled: labels of rows that have none, beside null: such rows are left out, and counted.
        tokenizer: hub id or folder; None is refused when read.
        tokenizer_revision: branch, tag or commit on the hub; None for its default.
        max_length: tokens; longer rows are cut.
        padding: "longest" of the batch, or "max_length" for all as the papers' code does.

    Raises:
        ValueError: when read, in words: a missing file, column or label, an empty split, a label out of range.
    """

    def __init__(
        self,
        *,
        path: str,
        text_columns: Sequence[str],
        tokenizer: str | None,
        tokenizer_revision: str | None = None,
        name: str | None = None,
        label_column: str = "label",
        label_names: Sequence[str | int | bool] | None = None,
        unlabelled: Sequence[str | int] = UNLABELLED,
        train_split: str = "train",
        validation_split: str = "validation",
        max_length: int = 128,
        padding: Literal["longest", "max_length"] = "longest",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check_padding(padding, self.group_by_length)
        if isinstance(text_columns, str) or not 1 <= len(text_columns) <= 2:
            raise ValueError(
                f"data.text_columns={text_columns!r} must be a list of one column, or of two for pairs: give"
                " data.text_columns=[…]"
            )
        self.path, self.name, self.task = path, name, name or Path(path).name
        self.text_columns, self.label_column = list(text_columns), label_column
        self.labels = LabelColumn(label_column, self.num_labels, as_names(label_names), unlabelled=unlabelled)
        self.splits = {"train": train_split, "validation": validation_split}
        self.tokenizer_path, self.max_length, self.padding = tokenizer, max_length, padding
        self.tokenizer_revision = tokenizer_revision
        self.tokenizer: Any = None

    def read(self) -> tuple[Sequence[Row], Sequence[Row]]:
        self.tokenizer = read_tokenizer(self.tokenizer_path, self.max_length, revision=self.tokenizer_revision)
        # Where positions are counted from the row's first token, padding before it would move them with the neighbours' lengths.
        self.tokenizer.padding_side = "right"
        columns = [
            *(Column(name, "name the right one with data.text_columns=[…]", text=True) for name in self.text_columns),
            Column(self.label_column, "name the right one with data.label_column=…"),
        ]
        train, validation = (read_split(self.path, self.name, split, columns) for split in self.splits.values())
        labels = read_labels(
            {"train": train, "validation": validation}, replace(self.labels, model_names=self.model_names)
        )
        self.label_names, self.notes = labels.names, [*labels.notes]
        return self._encode(train, "train", labels), self._encode(validation, "validation", labels)

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        inputs = [{name: value for name, value in row.items() if name != "labels"} for row in rows]
        batch = self.tokenizer.pad(
            inputs, padding=self.padding, max_length=self.max_length, return_attention_mask=True, return_tensors="pt"
        )
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}

    def tokens(self, batch: Mapping[str, Tensor]) -> list[str]:
        return self.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())

    def fingerprint(self) -> str:
        """Also of the padding, which a loss that averages over it can feel."""
        padded = f"{self.padding}" + (f" {self.max_length}" if self.padding == "max_length" else "")
        return hashlib.sha256(f"{super().fingerprint()} {padded}".encode()).hexdigest()

    def _encode(self, split: Dataset, name: str, labels: Labels) -> list[Row]:
        """The rows that have a label."""
        numbers, empty = labels.splits[name], 0
        rows: list[Row] = []
        for start in range(0, len(split), CHUNK):
            chunk = split[start : start + CHUNK]
            texts = [_texts(chunk[column], column, name) for column in self.text_columns]
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
            self.notes.append(f"{empty} rows of the {name} split have no tokens, and are read as {end!r} alone")
        return rows

    def _end_of_text(self, inputs: Row, row: str) -> dict[str, list[int]]:
        """The inputs of a text without tokens: a model needs one to answer at."""
        if (end := self.tokenizer.eos_token_id) is None:
            raise ValueError(
                f"{row} has a text without tokens, and the tokenizer has no end-of-text token for it: take the row out, or name"
                " an eos_token in tokenizer_config.json"
            )
        return {name: [{"input_ids": end, "attention_mask": 1}.get(name, 0)] for name in inputs}


def _texts(values: Sequence[Any], column: str, split: str) -> list[str]:
    """A missing text is an empty one."""
    if wrong := [value for value in values if not isinstance(value, str | None)]:
        raise ValueError(
            f"column {column!r} of the {split} split holds {wrong[0]!r}, which is no text in UTF-8: name columns of text with"
            " data.text_columns=[…]"
        )
    return [value or "" for value in values]
