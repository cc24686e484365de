"""Sentence embeddings: sentences without labels to train on, pairs of sentences to score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional
from torchmetrics.regression import SpearmanCorrCoef

from qat_lightning.data.base import Row
from qat_lightning.data.dataset_files import read_split, read_table
from qat_lightning.data.file_formats import Column
from qat_lightning.data.samplers import permutation
from qat_lightning.data.tokenizers import CHUNK, TokenizedData, check_texts

Embed = Callable[[Iterable[Mapping[str, Tensor]]], Tensor]
Target = Literal["teacher", "human"]

SECOND = "second_"
"""Prefix of the inputs of a pair's second sentence in a row."""


class SimilaritySpearman(SpearmanCorrCoef):
    """Spearman correlation of the pairs' similarities with those of the teacher, or with human scores.

    Args:
        target: "teacher" or "human".

    Raises:
        ValueError: another target.
    """

    def __init__(self, target: Target = "teacher") -> None:
        super().__init__()
        if target not in get_args(Target):
            raise ValueError(f"target={target!r} is unknown: choose teacher or human")
        self.column = get_args(Target).index(target)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch: preds are similarities (B,), target is (B, 2): the teacher's similarity and the human score."""
        super().update(preds, target[:, self.column])

    def compute(self) -> Tensor:
        """Return the correlation; NaN if a target is not a number."""
        correlation = super().compute()
        return correlation if torch.cat(self.target).isfinite().all() else torch.full_like(correlation, torch.nan)


class SentenceEmbeddingData(TokenizedData):
    """Training batches of sentences without labels; validation batches of pairs of sentences.

    Training: input_ids, attention_mask (and token_type_ids if the tokenizer makes them), (B, N). Validation: the two
    sentences of each pair one after the other, (2B, N), and "labels" (B, 2): the teacher's cosine similarity, and the human
    score, NaN without one. Each sentence is used once, in the order of the files.

    Args:
        text_columns: columns of sentences; each cell is a sentence.
        pair_columns: the two columns of the validation split that make pairs; None pairs the sentences of `text_columns`
            at random, the same way in every run.
        score_column: a column of the validation split with human scores of the pairs; None without.
        pooling: "mean", "cls" or "last", see `SentencePooling`; None for that of the model's folder, else "mean".
        normalize: divide embeddings by their Euclidean norm; None for what the model's folder says, else True.
        common: the arguments of `TokenizedData` and `TaskData`.

    Attributes:
        embed: batches → embeddings (rows, D) of the teacher, which are the targets of the validation.

    Raises:
        ValueError: an argument out of range; when read, a missing file or column, or no teacher in `embed`.
    """

    head = "sentence_embedding"
    derived = ("similarity",)

    def __init__(
        self,
        *,
        text_columns: Sequence[str],
        pair_columns: Sequence[str] | None = None,
        score_column: str | None = None,
        pooling: str | None = None,
        normalize: bool | None = None,
        max_length: int = 128,
        **common: Any,
    ) -> None:
        super().__init__(num_labels=2, max_length=max_length, **common)  # num_labels has no meaning here
        if isinstance(text_columns, str) or not text_columns:
            raise ValueError(f"text_columns={text_columns!r} must be a list of columns")
        if pair_columns is not None and (isinstance(pair_columns, str) or len(pair_columns) != 2):
            raise ValueError(f"pair_columns={pair_columns!r} must be a list of two columns, or null for random pairs")
        if score_column is not None and pair_columns is None:
            raise ValueError(f"score_column={score_column!r} needs pair_columns=[…], the two sentences of each score")
        self.text_columns, self.score_column = list(text_columns), score_column
        self.pair_columns = None if pair_columns is None else list(pair_columns)
        self.pooling, self.normalize = pooling, normalize
        self.embed: Embed | None = None

    @property
    def _one_split(self) -> bool:
        """Tell whether only the pairs are read, as `evaluate` does."""
        return self.splits["train"] == self.splits["validation"]

    def read(self) -> tuple[Sequence[Row], Sequence[Row]]:
        self.read_tokenizer(pad_right=True)
        validation = self._validation_rows()
        if self._one_split:
            return validation, validation
        return self._encode(self._sentences("train")), validation

    def load(self) -> None:
        """Read both splits, and compute the teacher's similarities of the validation pairs."""
        super().load()
        if "score" not in self.validation_rows[0] or "similarity" in self.validation_rows[0]:
            return
        if self.embed is None:
            raise ValueError(
                "the teacher's similarities are the targets: set `embed` to a function, batches → embeddings"
            )
        size, rows = self.evaluation_batch_size, self.validation_rows
        embeddings = self.embed(self._pairs(rows[start : start + size]) for start in range(0, len(rows), size))
        similarities = _similarity(embeddings).tolist()
        self.validation_rows = [{**row, "similarity": each} for row, each in zip(rows, similarities, strict=True)]
        if self._one_split:
            self.train_rows = self.validation_rows

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        if "score" not in rows[0]:
            inputs = self.pad(rows)
            return inputs | {"labels": torch.zeros(len(rows))} if "labels" in rows[0] else inputs
        targets = [[row["similarity"], row["score"]] for row in rows]
        return self._pairs(rows) | {"labels": torch.tensor(targets, dtype=torch.float32)}

    def predict(self, logits: Sequence[Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the cosine similarity of each pair (B,) and the targets (B, 2).

        Args:
            logits: [embeddings (2B, D)].
        """
        return _similarity(logits[0]), batch["labels"]

    def read_unlabelled(self, source: Path) -> tuple[Sequence[Row], pyarrow.Table]:
        if len(self.text_columns) != 1:
            raise ValueError(f"text_columns={self.text_columns} must be the one column whose texts are embedded")
        self.read_tokenizer(pad_right=True)
        (column,) = self.text_columns
        table = read_table(source, [Column(column, "name the column with text_columns=[…]", text=True)])
        texts = check_texts(table[column].to_pylist(), column, "input", "text_columns")
        return [{**row, "labels": 0} for row in self._encode(texts)], table

    def output_columns(self, logits: Tensor, names: Sequence[str] | None) -> dict[str, list[Any]]:
        """Return the column `embedding`, a list of numbers for each row."""
        return {"embedding": logits.tolist()}

    def _validation_rows(self) -> list[Row]:
        if self.pair_columns is None:
            rows = self._encode(self._sentences("validation"))
            firsts, seconds = rows, [rows[index] for index in permutation(len(rows), 0, 0)]
            scores = [math.nan] * len(rows)
        else:
            split = self._split("validation", self.pair_columns)
            firsts, seconds = (self._encode(self._texts(split, column, "validation")) for column in self.pair_columns)
            scores = self._scores(split)
        return [
            {**first, **{f"{SECOND}{name}": value for name, value in second.items()}, "score": float(score)}
            for first, second, score in zip(firsts, seconds, scores, strict=True)
        ]

    def _scores(self, split: Dataset) -> list[float]:
        if self.score_column is None:
            return [math.nan] * len(split)
        scores = split[self.score_column][:]
        for row, score in enumerate(scores):
            if not isinstance(score, int | float) or not math.isfinite(score):
                raise ValueError(
                    f"row {row} of the validation split has the score {score!r}, which is not a finite number: set another"
                    " score_column=…, or remove the row"
                )
        return scores

    def _sentences(self, name: str) -> list[str]:
        """Return the different sentences of a split that are not empty, in the order of the files."""
        split = self._split(name, self.text_columns)
        texts = [text for column in self.text_columns for text in self._texts(split, column, name)]
        return list(dict.fromkeys(text for text in texts if text.strip()))

    def _split(self, name: str, texts: Sequence[str]) -> Dataset:
        argument = "pair_columns" if texts is self.pair_columns else "text_columns"
        columns = [Column(column, f"name the column with {argument}=[…]", text=True) for column in texts]
        if name == "validation" and self.score_column is not None:
            columns.append(Column(self.score_column, "name the column with score_column=…"))
        return read_split(self.path, self.name, self.splits[name], columns)

    def _texts(self, split: Dataset, column: str, name: str) -> list[str]:
        return check_texts(split[column][:], column, name, "text_columns")

    def _encode(self, texts: Sequence[str]) -> list[Row]:
        rows: list[Row] = []
        for start in range(0, len(texts), CHUNK):
            chunk = list(texts[start : start + CHUNK])
            encoded = self.tokenizer(chunk, truncation=True, max_length=self.max_length, return_attention_mask=True)
            rows += [{name: encoded[name][row] for name in encoded} for row in range(len(chunk))]
        return rows

    def _pairs(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Pad the sentences of pairs, (2B, N): first and second sentence of the first pair, and so on."""
        names = [name for name in rows[0] if f"{SECOND}{name}" in rows[0]]
        prefixes = ("", SECOND)
        return self.pad([{name: row[f"{prefix}{name}"] for name in names} for row in rows for prefix in prefixes])


def _similarity(embeddings: Tensor) -> Tensor:
    """Return the cosine similarity of each two neighbours, (2B, D) → (B,)."""
    return functional.cosine_similarity(embeddings[::2], embeddings[1::2])
