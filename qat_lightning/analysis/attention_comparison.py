"""Measures of the attention maps of a model, layer by layer. Shapes: B batch, H heads, N queries, M keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from qat_lightning.analysis.attention_maps import attention_distance, column_mass, map_divergence
from qat_lightning.analysis.attention_ranking import cover_length_ratio, ranking_loss
from qat_lightning.analysis.token_masks import first_token, token_mask
from qat_lightning.models.capture import Batch, Signals
from qat_lightning.models.module_paths import layer_pairs

Layers = list[float]
MAPS = "attention.probs"


def compare_maps(student: Signals, teacher: Signals, batch: Batch, k: int = 5) -> dict[str, Layers]:
    """Return `ranking_loss`, `cover_length_ratio`, `map_divergence` → one number for each layer, mean over samples and heads.

    If the teacher is deeper, each layer of the student is compared with the one of `module_paths.layer_pairs`.

    Raises:
        ValueError: a teacher whose depth is not a multiple of the student's, or maps of different shapes.
    """
    own, other = student[MAPS], teacher[MAPS]
    pairs = [(own[layer], other[partner]) for layer, partner in layer_pairs(MAPS, len(own), len(other))]
    return {
        "ranking_loss": [float(ranking_loss(*pair, batch).mean()) for pair in pairs],
        "cover_length_ratio": [float(cover_length_ratio(*pair, batch, k=k).mean()) for pair in pairs],
        "map_divergence": [float(map_divergence(*pair, batch).mean()) for pair in pairs],
    }


def describe_maps(signals: Signals, batch: Batch, columns: Mapping[str, Tensor] | None = None) -> dict[str, Layers]:
    """Return `attention_distance`, `cls_mass` and the mass of each of `columns` → one number for each layer.

    The first token counts as [CLS], in a text and in an image.

    Args:
        columns: name → keys, boolean (B, M), see `token_classes`.
    """
    maps = signals[MAPS]
    described = {
        "attention_distance": [float(attention_distance(layer, batch).mean()) for layer in maps],
        "cls_mass": [float(column_mass(layer, first_token(token_mask(batch, layer)), batch).mean()) for layer in maps],
    }
    for name, keys in (columns or {}).items():
        described[name] = [float(column_mass(layer, keys, batch).mean()) for layer in maps]
    return described


def mean(layers: Sequence[float]) -> float:
    """Average over the layers."""
    return sum(layers) / len(layers)
