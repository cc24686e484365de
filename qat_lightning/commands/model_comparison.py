"""Compare the logits, predictions and metrics of two models on the same batches."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from qat_lightning.data.base import TaskData
from qat_lightning.data.tokenizers import IGNORED
from qat_lightning.models.capture import SignalCapture

NEAR = 1e-3
"""Logits that differ by no more are equal, where no metric or no class decides."""


@dataclass(frozen=True)
class Comparison:
    """The difference between another form of a model and the model itself, on the same rows.

    `agreement` is the share of logit vectors (one for each row; of question answering, for each token; of language models and
    token classification, for each token with a label) with the same largest entry; of a regression, the share that are equal
    to `NEAR`; of several labels a row, the share of rows with the same labels.
    """

    score: float  # the validation metric of that form; NaN or infinite where it is undefined
    reference: float  # that of the model
    largest_difference: float  # between their logits; infinite where only one of them is not a finite number
    agreement: float
    rows: int


class InFloat64(nn.Module):
    """A copy of a model that computes in float64; its difference from the model is the model's rounding error."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).double()
        self.sentence_pooling = getattr(model, "sentence_pooling", None)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> Mapping[str, Tensor]:
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "pixel_values": None if pixel_values is None else pixel_values.double(),
        }
        return self.model(**{name: value for name, value in given.items() if value is not None})


@torch.no_grad()
def compare(other: nn.Module, model: nn.Module, data: TaskData, rows: int) -> Comparison:
    """Compare both on the first validation rows, in the batches of a validation, in float32 on the CPU."""
    observe, observe_other = SignalCapture(model.eval()), SignalCapture(other.eval())
    metric, other_metric = (_alone(data.metrics[data.metric]) for _ in range(2))
    largest, same, vectors, seen = 0.0, 0, 0, 0
    for batch in _batches(data, rows):
        expected, given = observe(batch)["logits"], observe_other(batch)["logits"]
        metric.update(*data.predict(expected, batch))
        other_metric.update(*data.predict(given, batch))
        for left, right in zip(expected, given, strict=True):
            largest = max(largest, float(_differences(left, right).max()))
            equal = ((left > 0) == (right > 0)).all(-1) if data.multi_label else _equal(left, right)
            if left.dim() == 3:  # a class for each token, but for those without a label
                equal = equal[batch["labels"] != IGNORED]
            same, vectors = same + int(equal.sum()), vectors + equal.numel()
        seen += len(batch["labels"])
    return Comparison(float(other_metric.compute()), float(metric.compute()), largest, same / max(vectors, 1), seen)


def _alone(metric: Metric) -> Metric:
    """Return a copy of the metric that does not wait for other processes, which do not compare."""
    copied = copy.deepcopy(metric)
    copied.distributed_available_fn = lambda: False
    return copied


def _batches(data: TaskData, rows: int) -> Iterator[Mapping[str, Tensor]]:
    taken, size = data.validation_rows, data.evaluation_batch_size
    for start in range(0, min(rows, len(taken)), size):
        yield data.collate([taken[row] for row in range(start, min(start + size, rows, len(taken)))])


def _differences(left: Tensor, right: Tensor) -> Tensor:
    """Return |left − right|; 0 where both are NaN or the same infinity, infinite where only one is a finite number."""
    same = (left == right) | (left.isnan() & right.isnan())
    return (left - right).abs().masked_fill(same, 0.0).nan_to_num(nan=torch.inf)


def _equal(left: Tensor, right: Tensor) -> Tensor:
    if left.shape[-1] == 1:
        return _differences(left, right) <= NEAR
    return (left.argmax(-1) == right.argmax(-1)) & (left.isfinite().all(-1) == right.isfinite().all(-1))
