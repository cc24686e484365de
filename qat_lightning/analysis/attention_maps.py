"""Measures of attention maps, alone or against the teacher's. Shapes: B batch, H heads, N queries, M keys.

Maps are (B, H, N, M) attention probabilities of one layer, or (…, N, M) of samples without padding; every result has a
value for each sample and head, (B, H), a mean over the queries that are not padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qat_lightning.analysis.token_masks import token_mask
from qat_lightning.models.capture import Batch, what_counts
from qat_lightning.models.map_divergence import map_divergence_sums
from qat_lightning.quantization.quantizers.base import to_float32


def map_divergence(student_map: Tensor, teacher_map: Tensor, batch: Batch | None = None) -> Tensor:
    """Compute KL(teacher ‖ student) = 1/n Σ_i Σ_j P^T_ij log(P^T_ij / P^S_ij) without padding, both clamped at 1e-8.

    The mean over samples and heads is the attention-map loss of arXiv:2211.11014 §4 for that layer.

    Raises:
        ValueError: maps of different shapes.
    """
    if student_map.shape != teacher_map.shape:
        raise ValueError(
            f"attention maps of shapes {tuple(student_map.shape)} and {tuple(teacher_map.shape)} cannot be compared:"
            " student and teacher need as many heads and tokens as each other"
        )
    counts = None if batch is None else what_counts("attention.probs", batch)
    student, teacher = _measurable(student_map), _measurable(teacher_map.to(student_map.device))
    sums, queries = map_divergence_sums(student, teacher, None if counts is None else counts.to(student.device))
    return sums / queries


def column_mass(maps: Tensor, columns: Tensor, batch: Batch | None = None) -> Tensor:
    """Compute Σ_{j in columns} P_ij, the probability of these keys, such as [CLS] or [SEP].

    Args:
        columns: boolean (B, M), or (M,) for all samples; see `first_token` and `token_classes`.
    """
    columns = columns.to(maps.device)
    chosen = columns[:, None, None, :] if columns.dim() > 1 else columns
    return _over_rows(_measurable(maps) * chosen, token_mask(batch, maps))


def attention_distance(maps: Tensor, batch: Batch | None = None, normalise: bool = False) -> Tensor:
    """Compute Σ_j P_ij·|i − j|, the mean distance to the keys in tokens (arXiv:2211.11014, released code).

    Args:
        normalise: divide by the number of tokens n.
    """
    tokens = token_mask(batch, maps)
    places = torch.arange(max(maps.shape[-2:]), device=maps.device)
    apart = (places[: maps.shape[-2], None] - places[: maps.shape[-1]]).abs()
    distance = _over_rows(_measurable(maps) * apart, tokens)
    return distance / tokens.sum(-1, keepdim=tokens.dim() > 1).clamp(min=1) if normalise else distance


def _over_rows(terms: Tensor, tokens: Tensor) -> Tensor:
    """Sum (…, N, M) over the keys and average over the queries that are not padding."""
    if tokens.dim() == 1:
        return terms.sum(-1).mean(-1)
    counts = (tokens[:, :, None] & tokens[:, None, :]).unsqueeze(1)
    return (terms * counts).sum((-2, -1)) / tokens.sum(-1, keepdim=True).clamp(min=1)


def _measurable(maps: Tensor) -> Tensor:
    return to_float32(maps.detach())
