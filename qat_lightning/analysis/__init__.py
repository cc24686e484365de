"""Measures of models: attention, layer errors, dynamic range, Hessian, loss landscape."""

from qat_lightning.analysis.attention_maps import (
    attention_distance,
    column_mass,
    compare_maps,
    describe_maps,
    map_divergence,
)
from qat_lightning.analysis.attention_norms import (
    Norms,
    norm_analysis,
    norm_differences,
    projection_weights,
    transformed_values,
)
from qat_lightning.analysis.attention_ranking import cover_length_ratio, ranking_loss
from qat_lightning.analysis.dynamic_range import dynamic_range
from qat_lightning.analysis.hessian import hessian_spectrum, top_eigenvalues, with_norms
from qat_lightning.analysis.layer_errors import layer_errors
from qat_lightning.analysis.loss_landscape import Landscape, loss_landscape
from qat_lightning.analysis.token_masks import class_ids, first_token, token_classes, token_mask
from qat_lightning.analysis.training_log import StageHistory, read_history

__all__ = [
    "Landscape", "Norms", "StageHistory", "attention_distance", "class_ids", "column_mass", "compare_maps",
    "cover_length_ratio", "describe_maps", "dynamic_range", "first_token", "hessian_spectrum", "layer_errors",
    "loss_landscape", "map_divergence", "norm_analysis", "norm_differences", "projection_weights", "ranking_loss",
    "read_history", "token_classes", "token_mask", "top_eigenvalues", "transformed_values", "with_norms",
]  # fmt: skip
