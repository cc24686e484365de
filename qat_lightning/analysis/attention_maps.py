"""What attention maps say, each by itself or against the teacher's. Shapes: B batch, H heads, N queries, M keys.

Maps are (B, H, N, M) attention probabilities of one layer, or (…, N, M) of samples without padding; every result is of
each sample and head, (B, H), a mean over the rows that are not padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qat_lightning.analysis.token_masks import token_mask
from qat_lightning.models.capture import Batch

FLOOR = 1e-8
"""Probabilities below this are taken for it (arXiv:2211.11014, released code)."""


def map_divergence(student_map: Tensor, teacher_map: Tensor, batch: Batch | None = None) -> Tensor:
    """KL(teacher ‖ student) = 1/n Σ_i Σ_j P^T_ij log(P^T_ij / P^S_ij) over what is not padding, both clamped at 1e-8.

    The mean over samples and heads is the attention-map loss of arXiv:2211.11014 §4 for that layer.

    Raises:
        ValueError: maps of different shapes.
    """
    if student_map.shape != teacher_map.shape:
        raise ValueError(
            f"attention maps of shapes {tuple(student_map.shape)} and {tuple(teacher_map.shape)} cannot be compared:"
            " student and teacher need as many heads and tokens as each other"
        )
    student, teacher = (_wide(maps).clamp(min=FLOOR) for maps in (student_map, teacher_map.to(student_map.device)))
    return _over_rows(teacher * (teacher.log() - student.log()), token_mask(batch, student_map))


def column_mass(maps: Tensor, columns: Tensor, batch: Batch | None = None) -> Tensor:
    """Σ_{j in columns} P_ij: how much of a row's probability goes to these keys, such as [CLS] or [SEP].

    Args:
        columns: boolean (B, M), or (M,) for all samples alike; see `tokens.first_token` and `tokens.token_classes`.
    """
    columns = columns.to(maps.device)
    chosen = columns[:, None, None, :] if columns.dim() > 1 else columns
    return _over_rows(_wide(maps) * chosen, token_mask(batch, maps))


def attention_distance(maps: Tensor, batch: Batch | None = None, normalise: bool = False) -> Tensor:
    """Σ_j P_ij·|i − j|: how many tokens away a row looks (arXiv:2211.11014, released code).

    Args:
        normalise: divide by the number of tokens n.
    """
    tokens = token_mask(batch, maps)
    places = torch.arange(max(maps.shape[-2:]), device=maps.device)
    apart = (places[: maps.shape[-2], None] - places[: maps.shape[-1]]).abs()
    distance = _over_rows(_wide(maps) * apart, tokens)
    return distance / tokens.sum(-1, keepdim=tokens.dim() > 1).clamp(min=1) if normalise else distance


def _over_rows(terms: Tensor, tokens: Tensor) -> Tensor:
    """(…, N, M), summed over the keys and averaged over the queries that are no padding."""
    if tokens.dim() == 1:
        return terms.sum(-1).mean(-1)
    counts = (tokens[:, :, None] & tokens[:, None, :]).unsqueeze(1)
    return (terms * counts).sum((-2, -1)) / tokens.sum(-1, keepdim=True).clamp(min=1)


def _wide(maps: Tensor) -> Tensor:
    return maps.detach().to(torch.promote_types(maps.dtype, torch.float32))
