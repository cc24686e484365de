"""Two losses in one, with shares that sum to 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qat_lightning.distillation.losses.base import check_weight
from qat_lightning.models.capture import Batch, Signals


class WeightedPairLoss:
    """gamma · first + (1 − gamma) · second; a side whose gamma is 0 is neither computed nor captured.

    KD-QAT's unified loss with γ and 1 − γ (arXiv:2211.11014 §5), beside the two coefficients of two losses.

    Args:
        gamma: γ, from 0 to 1.
        first, second: losses; their own weights multiply their shares.
    """

    def __init__(self, gamma: float, first: Any, second: Any, weight: float = 1.0) -> None:
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma={gamma} must lie between 0 and 1")
        self.weight, self.gamma = check_weight(weight), gamma
        self.first, self.second = first, second
        shares = [(gamma * first.weight, first), ((1 - gamma) * second.weight, second)]
        self.parts = [(gamma, loss) for gamma, loss in shares if gamma != 0]
        if not self.parts:
            raise ValueError("nothing is left of this loss: give first or second a weight and a gamma above 0")
        self.sites = tuple(dict.fromkeys(site for _, loss in self.parts for site in loss.sites))
        self.needs_teacher = any(loss.needs_teacher for _, loss in self.parts)

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        return torch.stack([gamma * loss(student, teacher, batch) for gamma, loss in self.parts]).sum()
