"""Measures of the order of the keys, the student's against the teacher's. Shapes: B batch, H heads, N queries, M keys.

Maps are (B, H, N, M) attention probabilities of one layer, or (…, N, M) of samples without padding.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from qat_lightning.analysis.token_masks import token_mask
from qat_lightning.models.capture import Batch

Count = Literal["pairs", "reference"]


def ranking_loss(
    student_map: Tensor,
    teacher_map: Tensor,
    batch: Batch | None = None,
    count: Count = "pairs",
    normalise: bool = False,
) -> Tensor:
    """Compute Σ_rows Σ_{i<j} max(0, −(P^S_i − P^S_j)·sign(P^T_i − P^T_j)) for each sample and head (B, H), without padding.

    With the student's values s sorted upwards and ρ the order of the teacher's (ties in the student's order), a row's
    sum is Σ_k k·(s_k − s_ρ(k)): n log n operations instead of n² pairs. Maps with the same order give exactly 0.

    Source: arXiv:2211.11014 §3, after Liu et al., Post-Training Quantization for Vision Transformer (2021).

    Args:
        count: "pairs" counts each pair once; "reference", as the released code does, counts pairs without the first and the
            last key twice.
        normalise: divide by the number of pairs counted, so that texts of different lengths can be compared.

    Raises:
        ValueError: maps of different shapes, or an unknown `count`.
    """
    if count not in get_args(Count):
        raise ValueError(f"count={count!r} is unknown: choose one of {', '.join(get_args(Count))}")
    student, teacher = _doubles(student_map, teacher_map)
    tokens = token_mask(batch, student_map)
    length = tokens.sum(-1)
    rows, pairs = _rows(student, teacher, tokens), length * (length - 1) / 2
    if count == "reference":
        order = tokens.cumsum(-1)
        inner = tokens & (order > 1) & (order < length.unsqueeze(-1))
        rows = rows + _rows(student, teacher, inner)
        pairs = pairs + (length - 2).clamp(min=0) * (length - 3).clamp(min=0) / 2
    queries = tokens.unsqueeze(-2) if tokens.dim() > 1 else tokens
    total = (rows * queries).sum(-1)
    if normalise:
        total = total / (pairs * length).clamp(min=1).unsqueeze(-1)
    return total.float()


def cover_length_ratio(student_map: Tensor, teacher_map: Tensor, batch: Batch | None = None, k: int = 5) -> Tensor:
    """Compute the share of the student's keys, best first, that includes the teacher's k best, for each sample and head (B, H).

    mean over rows of (largest 0-based rank, in the student's descending order, of any of the teacher's top k keys) ÷ n.
    The best value is (k − 1)/n. A text of fewer than k tokens uses all of them. Ties are broken by position.

    Source: arXiv:2211.11014 §3 (k = 5 in the released notebook).

    Raises:
        ValueError: maps of different shapes, or k below 1.
    """
    if k < 1:
        raise ValueError(f"k={k} must be 1 or more")
    student, teacher = _doubles(student_map, teacher_map)
    tokens = token_mask(batch, student_map)
    keys = _of_keys(tokens)
    ranks = student.masked_fill(~keys, -torch.inf).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    best = teacher.masked_fill(~keys, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    length = tokens.sum(-1, keepdim=True)
    top = torch.arange(student.shape[-1], device=student.device) < length.clamp(max=k)
    cover = ranks.gather(-1, best).masked_fill(~_of_keys(top), 0).amax(-1)
    queries = tokens.unsqueeze(-2) if tokens.dim() > 1 else tokens
    return ((cover * queries).sum(-1) / length.clamp(min=1) ** 2).float()  # once for the mean, once for ÷ n


def _rows(student: Tensor, teacher: Tensor, counts: Tensor) -> Tensor:
    """Compute the loss of each row (…, N) over the pairs of keys that count, (B, M) or (M,)."""
    hidden = ~_of_keys(counts)
    values, own = student.masked_fill(hidden, torch.inf).sort(dim=-1, stable=True)
    order = teacher.masked_fill(hidden, torch.inf).gather(-1, own).argsort(dim=-1, stable=True)
    values = values.masked_fill(values.isinf(), 0.0)
    ranks = torch.arange(values.shape[-1], device=values.device)
    return (ranks * (values - values.gather(-1, order))).sum(-1)


def _of_keys(tokens: Tensor) -> Tensor:
    """Reshape (B, M) to (B, 1, 1, M); (M,) stays."""
    return tokens[:, None, None, :] if tokens.dim() > 1 else tokens


def _doubles(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Convert both maps to float64: ranks multiply the rounding errors of the values."""
    check_shapes(student, teacher)
    return student.detach().double(), teacher.detach().to(student.device).double()


def check_shapes(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError for maps of different shapes."""
    if student.shape != teacher.shape:
        raise ValueError(f"attention maps of shapes {tuple(student.shape)} and {tuple(teacher.shape)} do not match")
