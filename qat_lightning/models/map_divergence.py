"""The divergence of two attention maps, which a loss trains on and reports measure. Shapes: H heads, N queries, M keys."""

from __future__ import annotations

from torch import Tensor

SMALLEST = 1e-8
"""Smaller probabilities are raised to this value (arXiv:2211.11014, released code)."""


def map_divergence_sums(student: Tensor, teacher: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor | int]:
    """Compute Σ_i Σ_j P^T_ij log(P^T_ij / P^S_ij), KL(teacher ‖ student) summed over queries, for each sample and head.

    Args:
        student, teacher: probabilities (…, H, N, M), both clamped at 1e-8, in float32 at least.
        counts: the elements that are not padding, boolean and broadcastable; None for all.

    Returns:
        The sums (…, H), and the number of queries of each sample (…, 1), or N.

    Source: arXiv:2211.11014 §4.
    """
    student, teacher = (maps.clamp(min=SMALLEST) for maps in (student, teacher))
    terms = teacher * (teacher / student).log()
    if counts is None:
        return terms.sum((-2, -1)), terms.shape[-2]
    return (terms * counts).sum((-2, -1)), counts.any(-1).sum(-1).clamp(min=1)
