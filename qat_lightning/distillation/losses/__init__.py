"""Losses: (student signals, teacher signals, batch) → scalar; see `base.Loss`."""

from qat_lightning.distillation.losses.attention_map import AttentionMapLoss
from qat_lightning.distillation.losses.base import Loss
from qat_lightning.distillation.losses.embeddings import EmbeddingLoss, SimilarityLoss
from qat_lightning.distillation.losses.feature_matching import (
    Distance,
    FeatureMatchingLoss,
    mean_squared_error,
    score_mean_squared_error,
)
from qat_lightning.distillation.losses.logits import LogitDistillationLoss, TaskLoss, TokenScaledLoss
from qat_lightning.distillation.losses.weighted_pair import WeightedPairLoss

__all__ = [
    "AttentionMapLoss", "Distance", "EmbeddingLoss", "FeatureMatchingLoss", "LogitDistillationLoss", "Loss",
    "SimilarityLoss", "TaskLoss", "TokenScaledLoss", "WeightedPairLoss", "mean_squared_error",
    "score_mean_squared_error",
]  # fmt: skip
