"""Measures of attention maps, alone or against the teacher's. Shapes: B batch, H heads, N queries, M keys.

Maps are (B, H, N, M) attention probabilities of one layer, or (…, N, M) of samples without padding; every result has a
value for each sample and head, (B, H), a mean over the queries that are not padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from qat_lightning.analysis.attention_ranking import check_shapes, cover_length_ratio, ranking_loss
from qat_lightning.analysis.token_masks import first_token, token_mask
from qat_lightning.models.capture import Batch, Signals, what_counts
from qat_lightning.models.map_divergence import map_divergence_sums
from qat_lightning.models.module_paths import layer_pairs
from qat_lightning.quantization.quantizers.base import to_float32

Layers = list[float]
MAPS = "attention.probs"


def map_divergence(student_map: Tensor, teacher_map: Tensor, batch: Batch | None = None) -> Tensor:
    """Compute KL(teacher ‖ student) = 1/n Σ_i Σ_j P^T_ij log(P^T_ij / P^S_ij) without padding, both clamped at 1e-8.

    The mean over samples and heads is the attention-map loss of arXiv:2211.11014 §4 for that layer.
    """
    check_shapes(student_map, teacher_map)
    counts = None if batch is None else what_counts("attention.probs", batch)
    student, teacher = _measurable(student_map), _measurable(teacher_map.to(student_map.device))
    sums, queries = map_divergence_sums(student, teacher, None if counts is None else counts.to(student.device))
    return sums / queries


def column_mass(maps: Tensor, columns: Tensor, batch: Batch | None = None) -> Tensor:
    """Compute Σ_{j in columns} P_ij, the probability of these keys, boolean (B, M), or (M,) for all samples."""
    columns = columns.to(maps.device)
    chosen = columns[:, None, None, :] if columns.dim() > 1 else columns
    return _over_rows(_measurable(maps) * chosen, token_mask(batch, maps))


def attention_distance(maps: Tensor, batch: Batch | None = None) -> Tensor:
    """Compute Σ_j P_ij·|i − j|, the mean distance to the keys in tokens (arXiv:2211.11014, released code)."""
    places = torch.arange(max(maps.shape[-2:]), device=maps.device)
    apart = (places[: maps.shape[-2], None] - places[: maps.shape[-1]]).abs()
    return _over_rows(_measurable(maps) * apart, token_mask(batch, maps))


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

    The first token counts as [CLS], in a text and in an image. `columns` is name → keys, boolean (B, M), see `token_classes`.
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


def _over_rows(terms: Tensor, tokens: Tensor) -> Tensor:
    """Sum (…, N, M) over the keys and average over the queries that are not padding."""
    if tokens.dim() == 1:
        return terms.sum(-1).mean(-1)
    counts = (tokens[:, :, None] & tokens[:, None, :]).unsqueeze(1)
    return (terms * counts).sum((-2, -1)) / tokens.sum(-1, keepdim=True).clamp(min=1)


def _measurable(maps: Tensor) -> Tensor:
    return to_float32(maps.detach())
