"""KDLSQ-BERT's student and loss written out densely in float64 (arXiv:2101.05938). Imports nothing of qat_lightning.

One learned threshold for each weight matrix, embedding table, input of a linear layer and operand of attention, all per
tensor; α's gradient and where the input's stops as in the released code (`learned_steps.threshold`), here by torch's own
operators, so that it flows through the whole model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.golden import kdqat, reference
from tests.golden.learned_steps import largest_code, percentile
from tests.golden.reference import Signals

MASKED_SCORE = -100


def is_weight(place: str) -> bool:
    return place.endswith("weight_quantizer")


def quantized(x: Tensor, alpha: Tensor, bits: int, clip_gradient: bool) -> Tensor:
    """α·round(clip(x/α, −1, 1)·Q)/Q, the rounding's derivative 1; without `clip_gradient` that of x is 1 everywhere."""
    codes = largest_code(bits)
    value = x if clip_gradient else x.detach()
    inside = torch.clamp(value / alpha, -1, 1) * codes
    output = alpha * (inside + (torch.round(inside) - inside).detach()) / codes
    return output if clip_gradient else output + (x - x.detach())


@dataclass
class Thresholds:
    """`at` of a dense BERT. A place without an α takes one from the first tensor that passes it, by percentile.

    Attributes:
        rounding, clip: how near the nearest value came to the middle of two codes, and to its α (relative to α): a
            float32 run takes the same decisions only when both exceed its rounding errors.
    """

    weight_bits: int = 2
    alphas: dict[str, Tensor] = field(default_factory=dict)
    rounding: float = float("inf")
    clip: float = float("inf")

    def __call__(self, place: str, x: Tensor) -> Tensor:
        bits = self.weight_bits if is_weight(place) else 8
        if place not in self.alphas:
            self.alphas[place] = torch.tensor(percentile(x.detach().numpy()), dtype=torch.float64, requires_grad=True)
        alpha = self.alphas[place]
        self._see(x.detach() / alpha.detach(), bits)
        return quantized(x, alpha, bits, clip_gradient=not is_weight(place))

    def _see(self, ratio: Tensor, bits: int) -> None:
        scaled = ratio[ratio.abs() < 1] * largest_code(bits)
        if scaled.numel():
            self.rounding = min(self.rounding, float((scaled - scaled.floor() - 0.5).abs().min()))
        self.clip = min(self.clip, float((ratio.abs() - 1).abs().min()))


def hidden_loss(student: Signals, teacher: Signals, lengths: Sequence[int] | None) -> Tensor:
    """Σ_l MSE(X_l), the embeddings included."""
    return kdqat.matched(student["hidden"], teacher["hidden"], lengths, (1,))


def score_loss(student: Signals, teacher: Signals, lengths: Sequence[int] | None) -> Tensor:
    """Σ_l MSE(AS_l), what the mask has put at −100 or below set to 0 on both sides."""
    own, other = (
        [scores.masked_fill(scores <= MASKED_SCORE, 0.0) for scores in signals["scores"]]
        for signals in (student, teacher)
    )
    return kdqat.matched(own, other, lengths, (2, 3))


def ground_truth(student: Signals, labels: Tensor) -> Tensor:
    probs = torch.softmax(student["logits"][0], -1)
    right = torch.stack([row[int(label)] for row, label in zip(probs, labels, strict=True)])
    return -torch.log(right).sum() / len(labels)


def losses(student: Signals, teacher: Signals, labels: Tensor, lengths: Sequence[int] | None) -> dict[str, Tensor]:
    """The four terms by name, each with weight 1; with `lengths` padding does not count."""
    return {
        "logits": reference.prediction_loss(student, teacher, "mean"),
        "hidden": hidden_loss(student, teacher, lengths),
        "scores": score_loss(student, teacher, lengths),
        "task": ground_truth(student, labels),
    }
