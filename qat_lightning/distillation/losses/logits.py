"""Losses on the logits of the heads.

Shapes: B batch, N tokens, C classes, V vocabulary. A classifier has one head (B, C); question answering has two, start and
end, over positions (B, N); a language model has one, (B, N, V), with the next token of each token as labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from qat_lightning.distillation.losses.base import check_temperature, check_weight
from qat_lightning.models.capture import Batch, Signals
from qat_lightning.quantization.quantizers.base import check_choice, to_float32

IGNORED = -100
"""The label of a token without a next token."""


class LogitDistillationLoss:
    """L_pred = −Σ_c p^T_c · log p^S_c, averaged over the batch, or over all tokens with a next token.

    The sum over start and end for question answering, padding outside both distributions (arXiv:2009.12812 §4.2). A
    single logit is a regression: then it is MSE(logits), as in the papers for STS-B. With labels (B, C) of 0 and 1, several of
    which may be 1, it is the cross-entropy of each label's own probability,
    −Σ_c [σ(t_c)·log σ(s_c) + (1 − σ(t_c))·log(1 − σ(s_c))].

    Args:
        classes: "sum" adds over classes (arXiv:2211.11014 and 2302.11812, released code); "mean" averages over them, so
            is C times smaller (arXiv:2009.12812, 2101.05938, released code).
    """

    sites, needs_teacher = ("logits",), True

    def __init__(self, weight: float = 1.0, classes: Literal["sum", "mean"] = "sum", temperature: float = 1.0) -> None:
        self.weight, self.temperature = check_weight(weight), check_temperature(temperature)
        self.classes = check_choice(classes, Literal["sum", "mean"], "classes")

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        pairs = zip(_heads(student, batch), _heads(teacher, batch), strict=True)
        return torch.stack([self._of_head(own, other.detach(), batch) for own, other in pairs]).sum()

    def _of_head(self, own: Tensor, other: Tensor, batch: Batch) -> Tensor:
        if own.shape[-1] == 1:
            return functional.mse_loss(own, other)
        labels, scaled = batch.get("labels"), (own / self.temperature, other / self.temperature)
        if labels is not None and labels.is_floating_point() and labels.shape == own.shape:
            entropy = functional.binary_cross_entropy_with_logits(scaled[0], scaled[1].sigmoid(), reduction="none").sum(
                -1
            )
        else:
            entropy = soft_cross_entropy(*scaled)
        if self.classes == "mean":
            entropy = entropy / (other > PADDED).sum(-1)
        if own.dim() == 2:
            return entropy.mean()
        counts = batch["labels"] != IGNORED
        return (entropy * counts).sum() / counts.sum().clamp(min=1)


class TaskLoss:
    """The ground truth: cross-entropy with `labels`; MSE where they are floating, (B,), as for a regression; binary
    cross-entropy where they are floating, (B, C), as for several labels a row.

    Question answering: the mean of start and end. Language models: the mean over the tokens that have a next one.

    Args:
        label_smoothing: ε: the target is 1 − ε on the right class and ε/C on each of the C classes more (arXiv:1512.00567 §7).
        class_weights: one for each class; the loss is Σ w_y·L / Σ w_y over the rows, y their classes. None for equal ones.

    Raises:
        ValueError: an argument out of range; at the first batch, labels that are not classes, or another number of them.
    """

    sites, needs_teacher = ("logits",), False

    def __init__(
        self, weight: float = 1.0, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None
    ) -> None:
        self.weight = check_weight(weight)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must be 0 or more, and below 1")
        if class_weights is not None and not all(0 < each < math.inf for each in class_weights):
            raise ValueError(f"class_weights={list(class_weights)} must be positive numbers")
        self.label_smoothing = label_smoothing
        self.class_weights = None if class_weights is None else [*map(float, class_weights)]

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        if "labels" not in batch:
            raise ValueError("the task loss needs labels, and these rows have none: remove it, or train on other data")
        heads, labels = _heads(student, batch), batch["labels"]
        changed = self.label_smoothing > 0 or self.class_weights is not None
        if changed and (labels.is_floating_point() or len(heads) > 1):
            raise ValueError(
                "class_weights and label_smoothing are for classes, which these labels are not: remove them"
            )
        if labels.is_floating_point() and labels.dim() == 2:
            return functional.binary_cross_entropy_with_logits(heads[0], labels.to(heads[0].dtype))
        if labels.is_floating_point():
            return functional.mse_loss(heads[0].squeeze(-1), labels.to(heads[0].dtype))
        targets = labels.unbind(-1) if len(heads) > 1 else (labels,)
        return torch.stack([self._cross_entropy(*pair) for pair in zip(heads, targets, strict=True)]).mean()

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the (weighted) mean over the labels that are not ignored; 0 without such labels."""
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        if weights is not None and len(weights) != logits.shape[-1]:
            raise ValueError(
                f"class_weights has {len(weights)} weights for {logits.shape[-1]} classes: give one for each"
            )
        given: Any = {"weight": weights, "label_smoothing": self.label_smoothing, "ignore_index": IGNORED}
        summed = functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum", **given)
        counts = labels != IGNORED
        if weights is None:
            return summed / counts.sum().clamp(min=1)
        return summed / (weights[labels.clamp(min=0)] * counts).sum().clamp(min=torch.finfo(weights.dtype).tiny)


class TokenScaledLoss:
    """Σ_t w_t · SCE(p^T, p^S)_t with w = softmax over a sequence's tokens of (the teacher's own cross-entropy / 10).

    Tokens that the teacher itself finds hard count more. For language models. Source: TSLD, arXiv:2308.06744 §4.2.

    Args:
        temperature: the 10.
        batch: "sum" over the sequences of a batch, as released; "mean" does not depend on how many there are.

    Raises:
        ValueError: at the first batch, logits that are not (B, N, V).
    """

    sites, needs_teacher = ("logits",), True

    def __init__(self, weight: float = 1.0, temperature: float = 10.0, batch: Literal["sum", "mean"] = "sum") -> None:
        self.weight, self.temperature = check_weight(weight), check_temperature(temperature)
        self.batch = check_choice(batch, Literal["sum", "mean"], "batch")

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        own, other = _heads(student, batch)[0], _heads(teacher, batch)[0]
        if own.dim() != 3:
            raise ValueError("TokenScaledLoss is for language models (logits of each token): choose losses=logits")
        other, labels = other.detach(), batch["labels"]
        hardness = functional.cross_entropy(other.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        counts = labels != IGNORED
        scale = (hardness / self.temperature).masked_fill(~counts, torch.finfo(hardness.dtype).min).softmax(-1)
        each = (scale * counts * soft_cross_entropy(own, other)).sum(-1)
        return each.sum() if self.batch == "sum" else each.mean()


PADDED = -1e30
"""The logit of a position that is padding."""


def soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute −Σ_c softmax(teacher)_c · log softmax(student)_c over the last dimension."""
    return -(functional.softmax(teacher, -1) * functional.log_softmax(student, -1)).sum(-1)


def _heads(signals: Signals, batch: Batch) -> list[Tensor]:
    """Return the logits of each head; for heads over positions, padding gets a very low logit."""
    heads = [to_float32(head) for head in signals["logits"]]
    if len(heads) > 1 and "attention_mask" in batch:
        heads = [head.masked_fill(batch["attention_mask"] == 0, PADDED) for head in heads]
    return heads
