"""Losses: (student signals, teacher signals, batch) → scalar.

Each says which sites it reads, how much it weighs, and whether it needs a teacher.
"""

from qat_lightning.distillation.losses.attention_map import AttentionMap
from qat_lightning.distillation.losses.feature_matching import (
    Distance,
    Match,
    mean_squared_error,
    score_mean_squared_error,
)
from qat_lightning.distillation.losses.logits import SoftCrossEntropy, Task, TokenScaled
from qat_lightning.distillation.losses.weighted_pair import Balance

__all__ = [
    "AttentionMap",
    "Balance",
    "Distance",
    "Match",
    "SoftCrossEntropy",
    "Task",
    "TokenScaled",
    "mean_squared_error",
    "score_mean_squared_error",
]
