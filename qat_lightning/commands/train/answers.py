"""The answers of teacher, PTQ baseline and student to the validation rows, class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

from qat_lightning.commands.train.pipeline import Run
from qat_lightning.commands.train.process_rank import first_process
from qat_lightning.config.schema import Plain
from qat_lightning.data.base import Row, TaskData
from qat_lightning.data.tokenizers import IGNORED
from qat_lightning.io.files import finite
from qat_lightning.models.capture import SignalCapture

LARGEST_MATRIX = 100
"""Most classes of a confusion matrix in `metrics.json`."""


@torch.no_grad()
def outputs_of(run: Run, model: nn.Module, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Return the logits (rows, classes) of a model with one head, float32, and the labels, both on the CPU.

    For token classification a row is a token with a label.
    The batches are those of a validation; no random number is drawn. The model is left on the trainer's device.
    """
    trainer, data = run.scorer, run.data
    device = trainer.strategy.root_device
    capture, size, outputs = SignalCapture(model.eval().to(device)), data.evaluation_batch_size, []
    for start in range(0, len(rows), size):
        batch = data.collate([rows[row] for row in range(start, min(start + size, len(rows)))])
        with trainer.precision_plugin.val_step_context():
            (logits,) = capture({name: value.to(device) for name, value in batch.items()})["logits"]
        logits, labels = logits.float().cpu(), batch["labels"]
        counted = labels != IGNORED
        outputs.append((logits[counted], labels[counted]) if logits.dim() == 3 else (logits, labels))
    logits, labels = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    return logits, labels


def class_outputs(run: Run, model: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return `outputs_of` the validation rows; None for tasks without one class a row, and in all but the first process."""
    data = run.data
    if not first_process() or data.regression or not data.head.endswith("_classification"):
        return None
    label = data.collate([data.validation_rows[0]])["labels"]
    if (label.dim() > 1 and data.head != "token_classification") or label.is_floating_point():
        return None
    outputs = outputs_of(run, model, data.validation_rows)
    model.cpu()
    return outputs


def describe_answers(data: TaskData, outputs: Mapping[str, tuple[Tensor, Tensor] | None]) -> Plain | None:
    """Return agreement, calibration error, figures of each class, and confusion matrix of each model.

    `agreement` is the share of rows that a model answers as the teacher does. `calibration_error` is the expected
    calibration error with 15 bins (arXiv:1706.04599). In `confusion` a row is a right class, a column an answer.

    Args:
        outputs: "teacher", "untrained", "student" → `class_outputs`.
    """
    known = {name: pair for name, pair in outputs.items() if pair is not None}
    if "teacher" not in known:
        return None
    count, (teacher, labels) = data.num_labels, known["teacher"]
    described: Plain = {
        "classes": data.label_names or [str(number) for number in range(count)],
        "rows": labels.bincount(minlength=count).tolist(),
        "models": {},
    }
    for name, (logits, _) in known.items():
        answers = logits.argmax(1)
        confusion = multiclass_confusion_matrix(answers, labels, count)
        right, expected, given = confusion.diagonal().double(), confusion.sum(1), confusion.sum(0)
        described["models"][name] = {
            "agreement": float((answers == teacher.argmax(1)).double().mean()),
            "calibration_error": _calibration_error(logits, labels, count),
            "precision": (right / given.clamp(min=1)).tolist(),
            "recall": (right / expected.clamp(min=1)).tolist(),
            "f1": (2 * right / (expected + given).clamp(min=1)).tolist(),
            "confusion": confusion.tolist() if count <= LARGEST_MATRIX else None,
        }
    return finite(described)


def _calibration_error(logits: Tensor, labels: Tensor, count: int) -> float | None:
    if not logits.isfinite().all():
        return None
    return float(multiclass_calibration_error(logits.softmax(1), labels, count))
