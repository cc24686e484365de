"""The base of all data modules: rows, batches in a reproducible order, metrics, a fingerprint."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import Metric

from qat_lightning.data.loader_workers import ignore_first_sigterm, loading_context
from qat_lightning.data.samplers import ShardSampler, StageBatchSampler, permutation

Head = Literal[
    "text_classification",
    "image_classification",
    "token_classification",
    "question_answering",
    "causal_language_model",
    "sentence_embedding",
]
Row = Mapping[str, Any]
Collate = Callable[[Sequence[Row]], dict[str, Tensor]]


def check_sizes(least: int = 1, /, **sizes: int | None) -> None:
    """Raise ValueError for a size that is smaller than `least`, or too large for an index of a tensor."""
    for name, size in sizes.items():
        if size is not None and not least <= size < 2**31:
            raise ValueError(f"{name}={size} must be {least} or more, and less than 2**31")


class TaskData(LightningDataModule):
    """The data of a task, whose batches are `dict[str, Tensor]`: the model's inputs, "labels", and inputs of `predict`.

    "labels" are int64 classes (B,), float32 scores (B,) for a regression, start and end positions (B, 2) for question
    answering, or a class (B, N) of each token, −100 for none; a language model's is the next token. The model receives only
    names that are arguments of it. Subclasses define `read` and `collate`. Rows are read by `load`, or on first use.

    Attributes:
        head: the kind of model for this data.
        derived: names in rows that a model has computed from the others; a fingerprint leaves them out.
        multi_label: tell whether a row has any number of labels, (B, C) of 0 and 1.
        label_names: the classes in the order of their numbers; None without names.
        model_names: the same from the model's configuration; None without names.
        notes: notes for the user about the rows, one sentence each.

    Args:
        batch_size: rows in a training batch of one process.
        metrics: name → metric of the results of `predict`.
        metric: the name of the metric that selects and compares models.
        num_labels: number of classes; 1 for a regression.
        train_limit: number of rows, the first of a fixed permutation (the same for every seed), or a share of them below 1,
            but at least a batch; None for all.
        validation_limit: number of rows, the first ones, or a share of them below 1; None for all.
        evaluation_batch_size: rows in a validation batch; None for twice the batch size.
        num_workers: processes that collate; 0 for none.
        seed: seed of the order of the rows.
        group_by_length: put rows of similar length into the same training batch, which reduces padding.
        reshuffle: make new training batches in every epoch; False for the same batches in another order.
        test_split: split, or list of splits, on which a run scores its models once, at the end; None for none.

    Raises:
        ValueError: `metric` is not in `metrics`, or a size is below 1.
    """

    task = "task"
    head: Head = "text_classification"
    derived: Sequence[str] = ()
    multi_label = False

    def __init__(
        self,
        *,
        batch_size: int,
        metrics: Mapping[str, Metric],
        metric: str,
        num_labels: int,
        train_limit: float | None = None,
        validation_limit: float | None = None,
        evaluation_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        group_by_length: bool = False,
        reshuffle: bool = True,
        test_split: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if metric not in metrics:
            raise ValueError(f"metric={metric!r} is not one of the metrics: {', '.join(metrics)}")
        check_sizes(batch_size=batch_size, evaluation_batch_size=evaluation_batch_size, num_labels=num_labels)
        check_sizes(0, num_workers=num_workers, seed=seed)
        for name, value in {"train_limit": train_limit, "validation_limit": validation_limit}.items():
            if value is not None and not (0 < value < 1 or (value >= 1 and value == int(value))):
                raise ValueError(f"{name}={value} must be 1 or more rows, or a share of the rows below 1")
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size or 2 * batch_size
        self.metrics, self.metric, self.num_labels = dict(metrics), metric, num_labels
        self.train_limit, self.validation_limit = train_limit, validation_limit
        self.num_workers, self.seed = num_workers, seed
        self.group_by_length, self.reshuffle = group_by_length, reshuffle
        self.test_splits = [test_split] if isinstance(test_split, str) else list(test_split or ())
        self.label_names: list[str] | None = None
        self.model_names: list[str] | None = None
        self.notes: list[str] = []
        self.train_rows: Sequence[Row] = ()
        self.validation_rows: Sequence[Row] = ()

    @property
    def regression(self) -> bool:
        """Tell whether labels are scores, not classes."""
        return self.num_labels == 1

    @property
    def processor(self) -> Any:
        """transformers' tokenizer or image processor of the model's inputs; None without one."""
        return getattr(self, "tokenizer", None)

    @property
    def higher_is_better(self) -> bool:
        """Tell whether a higher value of `metric` is better; True for a metric that does not say so (a correlation)."""
        return self.metrics[self.metric].higher_is_better is not False

    def read(self) -> tuple[Sequence[Row], Sequence[Row]]:
        """Return training and validation rows, encoded: input name → numbers, and "labels"."""
        raise NotImplementedError(f"{type(self).__name__} must define read()")

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Return one batch of rows."""
        raise NotImplementedError(f"{type(self).__name__} must define collate(rows)")

    def read_unlabelled(self, source: Path) -> tuple[Sequence[Row], pyarrow.Table]:
        """Return the rows of a file or folder without labels, encoded with 0 in place of a label, and its columns.

        Raises:
            ValueError: this kind of data has no predictions for rows, or the source cannot be read.
        """
        raise ValueError(f"predictions are for classification and regression of texts and images, not for {self.task}")

    def predict(self, logits: Sequence[Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return what the metrics take: (class ids (B,) or regression scores (B,), labels).

        Args:
            logits: the logits of each head of the model, float32.
        """
        (scores,) = logits
        return scores.squeeze(-1) if self.regression else scores.argmax(-1), batch["labels"]

    def output_columns(self, logits: Tensor, names: Sequence[str] | None) -> dict[str, list[Any]]:
        """Return the columns that predictions of the validation rows have, `prediction` first.

        Args:
            logits: (rows, classes), or (labelled tokens, classes) for token classification.
            names: the classes in the order of their numbers.
        """
        if self.regression:
            return {"prediction": logits.squeeze(-1).tolist()}
        classes = list(names) if names else list(range(logits.shape[-1]))
        probabilities = logits.softmax(-1)
        return {"prediction": [classes[number] for number in logits.argmax(-1).tolist()]} | {
            f"probability_{name}": probabilities[:, number].tolist() for number, name in enumerate(classes)
        }

    def tokens(self, batch: Mapping[str, Tensor]) -> list[str] | None:
        """Return the tokens of the batch's first row; None for an image."""
        return None

    def load(self) -> None:
        """Read both splits, once.

        Raises:
            ValueError: data that cannot be used.
        """
        if self.train_rows:
            return
        train, validation = self.read()
        for name, rows in (("train", train), ("validation", validation)):
            if not len(rows):
                raise ValueError(f"the {name} split of {self.task} is empty: set path=FOLDER")
        count = self.limited(self.train_limit, len(train))
        if count < len(train):
            train = [train[row] for row in permutation(len(train), 0, 0)[:count]]  # the same for every seed of a sweep
        count = self.limited(self.validation_limit, len(validation))
        if count < len(validation):
            validation = [validation[row] for row in range(count)]
        self.train_rows, self.validation_rows = train, validation
        if self.group_by_length and self.train_lengths() is None:
            raise ValueError(
                f"group_by_length=true, but the rows of {self.task} are not tokens and have one size: remove it"
            )

    def limited(self, limit: float | None, rows: int) -> int:
        """Return how many of `rows` rows a limit leaves."""
        if limit is None:
            return rows
        return min(rows, max(math.ceil(limit * rows), self.batch_size) if limit < 1 else int(limit))

    def setup(self, stage: str) -> None:
        self.load()

    def train_dataloader(self) -> DataLoader:
        """Return a loader of a whole stage, so that Lightning's progress is one number: the batches that were processed."""
        self.load()
        rank, world_size = self._place()
        batches, start = None, 0
        if self.trainer is not None:
            if self.trainer.max_steps < 0:
                raise ValueError("the Trainer needs max_steps: one pass over the training loader is a complete stage")
            batches = self.trainer.max_steps * self.trainer.accumulate_grad_batches
            start = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        return self._loader(self.train_rows, batch_sampler=self.train_batches(batches, start, rank, world_size))

    def val_dataloader(self) -> DataLoader:
        """Return a loader of the validation rows in order, each once over all ranks."""
        self.load()
        sampler = ShardSampler(len(self.validation_rows), *self._place())
        return self._loader(self.validation_rows, batch_size=self.evaluation_batch_size, sampler=sampler)

    def _loader(self, rows: Sequence[Row], **batches: Any) -> DataLoader:
        return DataLoader(
            rows,  # type: ignore[arg-type]
            **batches,
            collate_fn=self.collate,
            num_workers=self.num_workers,
            worker_init_fn=ignore_first_sigterm,
            multiprocessing_context=loading_context(self.num_workers),
            pin_memory=torch.cuda.is_available(),
        )

    def batches_per_epoch(self, world_size: int = 1) -> int:
        """Return the number of training batches of one of `world_size` processes in an epoch."""
        self.load()
        return math.ceil(len(self.train_rows) / (self.batch_size * world_size))

    def train_lengths(self) -> Tensor | None:
        """Return the number of tokens of each training row, int32; None if rows are not tokens."""
        self.load()
        if "input_ids" not in self.train_rows[0]:
            return None
        return torch.tensor([len(row["input_ids"]) for row in self.train_rows], dtype=torch.int32)

    def train_batches(
        self,
        batches: int | None = None,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        grouped: bool | None = None,
    ) -> StageBatchSampler:
        """Return the rows of each training batch, see `StageBatchSampler`.

        Args:
            grouped: group rows by length; None for `group_by_length`.
        """
        grouped = self.group_by_length if grouped is None else grouped
        given = (len(self.train_rows), self.batch_size, self.seed, batches, start, rank, world_size)
        return StageBatchSampler(*given, self.train_lengths() if grouped else None, self.reshuffle)

    def calibration_batches(self, count: int) -> list[dict[str, Tensor]]:
        """Return `count` training rows in batches of 32, the same for every rank, seed and batch size."""
        self.load()
        chosen = permutation(len(self.train_rows), 0, 0)[:count]
        batches = [chosen[start : start + 32] for start in range(0, len(chosen), 32)]
        return [self.collate([self.train_rows[row] for row in rows]) for rows in batches]

    def example_batch(self, count: int) -> dict[str, Tensor]:
        """Return the first `count` validation rows."""
        self.load()
        return self.collate([self.validation_rows[row] for row in range(min(count, len(self.validation_rows)))])

    def fingerprint(self) -> str:
        """Return the SHA-256 of the encoded rows in use: it changes with the data, the tokenizer and the limits."""
        self.load()
        digest = hashlib.sha256(f"{self.num_labels}".encode())
        for rows in (self.train_rows, self.validation_rows):
            digest.update(f"split {len(rows)}".encode())
            for row in rows:
                for name, value in sorted(row.items()):
                    if name in self.derived:
                        continue
                    tensor = torch.as_tensor(value).contiguous()
                    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _place(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
