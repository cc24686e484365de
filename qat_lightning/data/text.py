"""Text classification and regression: GLUE or any set of one or two text columns, from the hub or from local files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import ClassLabel, Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from torch import Tensor
from transformers import AutoTokenizer

from qat_lightning.data.base import Row, TaskData

READERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}


class TextData(TaskData):
    """input_ids, attention_mask (and token_type_ids where the tokenizer makes them), (B, N), padded to the batch's longest.

    Args:
        path: hub id such as nyu-mll/glue, or a folder with `train.*` and `validation.*` as parquet, csv, tsv, json, jsonl.
        name: configuration on the hub, such as cola; None for none.
        text_columns: one, or two for pairs.
        label_column: whole numbers from 0, names, or numbers for a regression (num_labels=1).
        tokenizer: hub id or folder.
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
        tokenizer: str,
        name: str | None = None,
        label_column: str = "label",
        train_split: str = "train",
        validation_split: str = "validation",
        max_length: int = 128,
        padding: Literal["longest", "max_length"] = "longest",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if padding not in ("longest", "max_length"):
            raise ValueError(f"data.padding={padding!r} is unknown: choose longest or max_length")
        if not 1 <= len(text_columns) <= 2:
            raise ValueError(f"data.text_columns={list(text_columns)} must name one column, or two for pairs")
        self.path, self.name, self.task = path, name, name or Path(path).name
        self.text_columns, self.label_column = list(text_columns), label_column
        self.splits = {"train": train_split, "validation": validation_split}
        self.tokenizer_path, self.max_length, self.padding = tokenizer, max_length, padding
        self.tokenizer: Any = None

    def read(self) -> tuple[Sequence[Row], Sequence[Row]]:
        self.tokenizer = self._read_tokenizer()
        train, validation = (self._read_split(split) for split in ("train", "validation"))
        if not self.regression:
            self.label_names = self._names(train)
        return self._encode(train, "train"), self._encode(validation, "validation")

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        inputs = [{name: value for name, value in row.items() if name != "labels"} for row in rows]
        batch = self.tokenizer.pad(inputs, padding=self.padding, max_length=self.max_length, return_tensors="pt")
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}

    def tokens(self, batch: Any) -> list[str]:
        return self.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())

    def _read_tokenizer(self) -> Any:
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_path, use_fast=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"no tokenizer in {self.tokenizer_path!r}: give model.path or data.tokenizer a folder that holds one ({error})"
            ) from error
        if self.max_length > tokenizer.model_max_length:
            raise ValueError(
                f"data.max_length={self.max_length} is beyond the model's {tokenizer.model_max_length} positions: give less"
            )
        return tokenizer

    def _read_split(self, split: str) -> Dataset:
        wanted = self.splits[split]
        try:
            if Path(self.path).is_dir():
                return _read_files(Path(self.path), wanted)
            return load_dataset(self.path, self.name, split=wanted)
        except (DatasetNotFoundError, DatasetGenerationError, OSError) as error:
            reason = str(error.__cause__ or error)
            raise ValueError(f"data.path={self.path!r}: the {wanted} split cannot be read: {reason}") from error

    def _names(self, train: Dataset) -> list[str] | None:
        """Of the classes, where the labels are names or know theirs; in sorted order where the file gives none."""
        if self.label_column not in train.column_names:
            return None
        feature = train.features[self.label_column]
        if isinstance(feature, ClassLabel):
            return list(feature.names)
        values = train[self.label_column][:]
        return sorted(set(values)) if values and isinstance(values[0], str) else None

    def _encode(self, split: Dataset, name: str) -> list[Row]:
        if lacking := [column for column in (*self.text_columns, self.label_column) if column not in split.column_names]:
            raise ValueError(
                f"the {name} split of {self.path!r} has no column {lacking[0]!r}: it has {', '.join(split.column_names)};"
                " name them with data.text_columns=[…] data.label_column=…"
            )
        if not len(split):
            return []
        texts = [[text or "" for text in split[column][:]] for column in self.text_columns]
        encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length)
        labels = [self._label(value, row, name) for row, value in enumerate(split[self.label_column][:])]
        return [{key: encoded[key][row] for key in encoded} | {"labels": label} for row, label in enumerate(labels)]

    def _label(self, value: Any, row: int, split: str) -> int | float:
        where = f"row {row} of the {split} split has label {value!r}"
        if self.regression:
            try:
                return float(value)
            except (TypeError, ValueError):
                raise ValueError(f"{where}, which is no number: data.num_labels=1 asks for a regression") from None
        if isinstance(value, str):
            names = self.label_names or []
            if value not in names:
                raise ValueError(f"{where}, which the train split does not have: {', '.join(names)}")
            value = names.index(value)
        if value is None or int(value) != value or not 0 <= value < self.num_labels:
            raise ValueError(
                f"{where}, outside 0…{self.num_labels - 1}: set data.num_labels to the number of classes"
                " (labels of −1 mark an unlabelled test split, which cannot be used)"
            )
        return int(value)


def _read_files(folder: Path, split: str) -> Dataset:
    """`train.parquet`, or the only file whose name begins so (`validation_matched.parquet`)."""
    held = sorted(path for path in folder.iterdir() if path.suffix in READERS)
    exact = [path for path in held if path.stem == split]
    found = exact or [path for path in held if path.stem.startswith(split)]
    if len(found) != 1:
        raise ValueError(
            f"data.path={str(folder)!r} holds {'no' if not found else 'several'} {split} files"
            f" ({', '.join(path.name for path in held) or 'none that can be read'}): it needs {split}.parquet, .csv, .tsv,"
            " .json or .jsonl; or name another split with data.train_split=… data.validation_split=…"
        )
    options = {"sep": "\t"} if found[0].suffix == ".tsv" else {}
    # keep_in_memory: nothing is written beside the user's files
    return load_dataset(READERS[found[0].suffix], data_files={split: str(found[0])}, split=split, keep_in_memory=True, **options)
