"""Multi-label classification of texts: each row has any number of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from torch import Tensor

from qat_lightning.data.file_formats import Column
from qat_lightning.data.labels import Labels, whole_number
from qat_lightning.data.text_classification import TextClassificationData


class MultiLabelData(TextClassificationData):
    """Batches of input_ids, attention_mask (and token_type_ids), (B, N), and labels (B, C) of 0 and 1, float32.

    Args:
        label_columns: one column of 0 and 1 for each label, in the order of their numbers; None if `label_column` holds the
            labels of a row.
        label_column: lists of labels, or texts of labels between separators; an empty list or text for none.
        separator: between labels in a text.
        common: the arguments of `TextClassificationData`, `TokenizedData` and `TaskData`.

    Raises:
        ValueError: num_labels below 2; when read, an unknown label, a value of `label_columns` that is not 0 or 1, another
            number of labels than num_labels.
    """

    multi_label = True

    def __init__(
        self,
        *,
        label_columns: Sequence[str] | None = None,
        label_column: str = "labels",
        separator: str = ",",
        **common: Any,
    ) -> None:
        super().__init__(label_column=label_column, **common)
        if self.num_labels < 2:
            raise ValueError(
                f"num_labels={self.num_labels} must be 2 or more: one label that applies or not has two classes"
            )
        if label_columns is not None and len(label_columns) != self.num_labels:
            raise ValueError(f"label_columns={list(label_columns)} must have num_labels={self.num_labels} columns")
        self.label_columns = None if label_columns is None else list(label_columns)
        self.separator = separator

    def extra_columns(self, split: str) -> list[Column]:
        remedy = "name the columns with label_columns=[…], or the one column with label_column=…"
        return [Column(name, remedy) for name in self.label_columns or [self.label_column]]

    def read_labels(self, splits: Mapping[str, Dataset]) -> Labels:
        given = {name: self._labels(split, name) for name, split in splits.items()}
        names = self._order({label for row in given["train"] for label in row or ()})
        notes = [
            f"{missing} of {len(rows)} rows of the {name} split have no labels and are left out"
            for name, rows in given.items()
            if (missing := rows.count(None))
        ]
        return Labels({name: [_vector(row, names, name) for row in rows] for name, rows in given.items()}, names, notes)

    def predict(self, logits: Sequence[Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the probability of each label (B, C), and the labels, 0 or 1."""
        return logits[0].sigmoid(), batch["labels"].long()

    def output_columns(self, logits: Tensor, names: Sequence[str] | None) -> dict[str, list[Any]]:
        """Return `prediction`, the labels of more than half probability between separators, and all probabilities."""
        labels, probabilities = list(names or map(str, range(logits.shape[-1]))), logits.sigmoid()
        chosen = [
            [label for label, each in zip(labels, row, strict=True) if each > 0.5] for row in probabilities.tolist()
        ]
        return {"prediction": [self.separator.join(row) for row in chosen]} | {
            f"probability_{label}": probabilities[:, number].tolist() for number, label in enumerate(labels)
        }

    def _labels(self, split: Dataset, name: str) -> list[list[str] | None]:
        """Return the labels of each row as words; None for a row without a value."""
        if self.label_columns is None:
            return [self._words(value, row, name) for row, value in enumerate(split[self.label_column][:])]
        columns = [split[column][:] for column in self.label_columns]
        rows: list[list[str] | None] = []
        for number, values in enumerate(zip(*columns, strict=True)):
            for column, value in zip(self.label_columns, values, strict=True):
                if value not in (0, 1, "0", "1", None):
                    raise ValueError(
                        f"row {number} of the {name} split has {value!r} in column {column!r}, which is not 0 or 1: name other"
                        " columns with label_columns=[…]"
                    )
            chosen = [
                label for label, value in zip(self.label_columns, values, strict=True) if str(int(value or 0)) == "1"
            ]
            rows.append(None if None in values else chosen)
        return rows

    def _words(self, value: Any, row: int, name: str) -> list[str] | None:
        if isinstance(value, str):
            value = value.split(self.separator)
        if value is None or (isinstance(value, list) and None in value):
            return None
        if not isinstance(value, list):
            raise ValueError(
                f"row {row} of the {name} split has labels {value!r}, which are neither a list nor a text: set another"
                " label_column=…, or label_columns=[…]"
            )
        return [word for each in value if (word := str(each).strip())]

    def _order(self, found: set[str]) -> list[str]:
        """Return the names of the labels in the order of their numbers."""
        if self.label_columns is not None:
            return self.label_columns
        for names in (self.labels.names, self.model_names):
            if names and found <= set(names):
                return list(names)
        if all(whole_number(label) in range(self.num_labels) for label in found):
            return [str(number) for number in range(self.num_labels)]
        if len(found) != self.num_labels or self.labels.names is not None:
            shown = ", ".join(sorted(found)[:10]) + (", …" if len(found) > 10 else "")
            raise ValueError(
                f"num_labels={self.num_labels}, but column {self.label_column!r} has {len(found)} labels ({shown}): set"
                f" num_labels={len(found)}, label_names=[…], or another separator=…"
            )
        return sorted(found)


def _vector(labels: Sequence[str] | None, names: Sequence[str], split: str) -> list[float] | None:
    """Return 1 for each name that is a label and 0 for the others; None for a row without a value."""
    if labels is None:
        return None
    if unknown := sorted(set(labels) - set(names)):
        raise ValueError(
            f"the {split} split has the label {unknown[0]!r}, which the train split does not have: name all labels with"
            " label_names=[…]"
        )
    return [float(name in labels) for name in names]
