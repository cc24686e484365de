"""Rerankers (cross-encoders): a score for each pair of query and passage, by which the passages of a query are ranked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from datasets import Dataset
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.retrieval import RetrievalMRR, RetrievalNormalizedDCG
from torchmetrics.utilities import dim_zero_cat

from qat_lightning.data.base import Row
from qat_lightning.data.file_formats import Column
from qat_lightning.data.labels import Labels, read_labels
from qat_lightning.data.text_classification import TextClassificationData

Score = Literal["ndcg", "mrr"]


class RerankingData(TextClassificationData):
    """Pairs of query and passage with a relevance of 0 or more; the model has one logit, the score.

    "labels" are (B, 1), for binary cross-entropy, if the relevance is 0 or 1 in all rows, else (B,), for the mean
    squared error; "group" (B,) is the number of the query.

    Args:
        text_columns: the columns of query and passage.
        group_column: the column of the query's id; None for one query for each different text of the first column.
        train_labels: False for training rows without labels, to distil the teacher's scores alone.
        common: the arguments of `TextClassificationData`.

    Raises:
        ValueError: when read, a negative relevance, a query of the validation split with one passage, or none with a
            relevant passage.
    """

    def __init__(
        self,
        *,
        text_columns: Sequence[str],
        group_column: str | None = None,
        train_labels: bool = True,
        num_labels: int = 1,
        **common: Any,
    ) -> None:
        super().__init__(text_columns=text_columns, num_labels=num_labels, **common)
        if len(text_columns) != 2 or num_labels != 1:
            raise ValueError(
                f"text_columns={text_columns!r} must be the columns of query and passage, and num_labels={num_labels} 1"
            )
        self.group_column, self.train_labels, self.binary = group_column, train_labels, True
        self.without_label = [0.0, 0.0]

    def extra_columns(self, split: str) -> list[Column]:
        own = [Column(self.group_column, "name the column with group_column=…", text=True)] if self.group_column else []
        return [*own, *(super().extra_columns(split) if split != "train" or self.train_labels else [])]

    def read_labels(self, splits: Mapping[str, Dataset]) -> Labels:
        """Return [relevance, number of the query] for each row."""
        labels = read_labels(
            {name: splits[name] for name in splits if name != "train" or self.train_labels}, self.labels
        )
        given = {score for own in labels.splits.values() for score in own if score is not None}
        if min(given) < 0:
            raise ValueError(
                f"label_column={self.label_column!r} has the relevance {min(given)}: give numbers of 0 or more"
            )
        self.binary = given <= {0.0, 1.0}
        if not self.train_labels:
            labels.splits["train"] = [math.nan] * len(splits["train"])
        for name, split in splits.items():
            keys = split[self.group_column or self.text_columns[0]][:]
            numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
            scores = labels.splits[name]
            if name == "validation":
                self._check_groups([(key, score) for key, score in zip(keys, scores, strict=True) if score is not None])
            labels.splits[name] = [
                None if score is None else [score, numbers[key]] for score, key in zip(scores, keys, strict=True)
            ]
        return labels

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        batch = super().collate(rows)
        relevance, group = batch["labels"].unbind(1)
        labels = {"labels": relevance[:, None] if self.binary else relevance}
        return (
            {name: batch[name] for name in batch if name != "labels"}
            | {"group": group}
            | ({} if relevance.isnan().any() else labels)
        )

    def predict(self, logits: Sequence[Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return scores (B,), and (relevance, number of the query) (B, 2)."""
        return logits[0].squeeze(-1), torch.stack([batch["labels"].flatten(), batch["group"]], 1)

    def _check_groups(self, rows: Sequence[tuple[Any, float]]) -> None:
        sizes = Counter(key for key, _ in rows)
        relevant = {key for key, score in rows if score > 0}
        if alone := [key for key, count in sizes.items() if count == 1]:
            raise ValueError(
                f"{len(alone)} of {len(sizes)} queries of the validation split have one passage, such as {alone[0]!r}, so"
                " there is nothing to rank: remove their rows, or set another group_column=…"
            )
        if not relevant:
            raise ValueError(
                f"no query of the validation split has a passage with a {self.label_column} above 0: set another label_column=…"
            )
        if without := len(sizes.keys() - relevant):
            self.notes.append(
                f"{without} of {len(sizes)} queries of the validation split have no relevant passage and no score"
            )


class RankingScore(Metric):
    """Mean over the queries of nDCG@k, with the relevance as the gain, or of the reciprocal rank, as torchmetrics has them.

    Queries without a relevant passage do not count.

    Args:
        score: "ndcg", or "mrr": the reciprocal rank of the first passage with a relevance above 0, 0 beyond k.
        k: number of highest passages.
    """

    is_differentiable, higher_is_better, full_state_update = False, True, False
    scores: list[Tensor]
    targets: list[Tensor]

    def __init__(self, score: Score = "ndcg", k: int = 10, **common: Any) -> None:
        super().__init__(**common)
        if score not in get_args(Score) or k < 1:
            raise ValueError(f"score={score!r} must be one of {', '.join(get_args(Score))}, and k={k} 1 or more")
        self.score, self.k = score, k
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        self.scores.append(predictions)
        self.targets.append(targets)

    def compute(self) -> Tensor:
        relevance, group = dim_zero_cat(self.targets).unbind(1)
        kind = RetrievalNormalizedDCG if self.score == "ndcg" else RetrievalMRR
        metric = kind(empty_target_action="skip", top_k=self.k)
        target = relevance if self.score == "ndcg" else relevance > 0
        scores = dim_zero_cat(self.scores).double()
        metric.update(
            scores - scores.min() + 1, target, group.long()
        )  # torchmetrics' reciprocal rank drops scores below 0
        return metric.compute()
