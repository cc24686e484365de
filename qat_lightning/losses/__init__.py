"""Losses: (student signals, teacher signals, batch) → scalar.

Each says which sites it reads, how much it weighs, and whether it needs a teacher.
"""

from qat_lightning.losses.balance import Balance
from qat_lightning.losses.logits import SoftCrossEntropy, Task, TokenScaled
from qat_lightning.losses.maps import AttentionMap
from qat_lightning.losses.match import Distance, Match, mean_squared_error, score_mean_squared_error

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
