"""The losses of KD-QAT and of question answering, by naive loops in float64. Imports nothing of qat_lightning.

Sources: attention map and attention output, arXiv:2211.11014 §4 and its released code; prediction of positions,
arXiv:2009.12812, released code. Shapes: B batch, H heads, N queries, M keys, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOOR = 1e-8


def attention_map(student: Sequence[Tensor], teacher: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
    """Σ_l mean_{b,h} (1/n_b) Σ_{i,j ≤ n_b} P^T log(P^T/P^S); both probabilities clamped below at 1e-8 first."""
    pairs = zip(student, teacher, strict=True)
    return torch.stack([_map_of_a_layer(own, other, lengths) for own, other in pairs]).sum()


def _map_of_a_layer(student: Tensor, teacher: Tensor, lengths: Sequence[int]) -> Tensor:
    heads = student.shape[1]
    total = torch.zeros((), dtype=torch.float64)
    for sample, valid in enumerate(lengths):
        for head in range(heads):
            for query in range(valid):
                own = torch.clamp(student[sample, head, query, :valid].double(), min=FLOOR)
                other = torch.clamp(teacher[sample, head, query, :valid].detach().double(), min=FLOOR)
                total = total + (other * torch.log(other / own)).sum() / valid
    return total / (len(lengths) * heads)


def softened(probs: Tensor, temperature: float, lengths: Sequence[int]) -> Tensor:
    """softmax(scores/τ) from softmax(scores): P^(1/τ), normalized over the valid keys; padded keys are 0."""
    result = torch.zeros_like(probs)
    for sample, valid in enumerate(lengths):
        powers = probs[sample, :, :, :valid] ** (1 / temperature)
        result[sample, :, :, :valid] = powers / powers.sum(-1, keepdim=True)
    return result


def matched(
    student: Sequence[Tensor], teacher: Sequence[Tensor], lengths: Sequence[int] | None, token_axes: Sequence[int]
) -> Tensor:
    """Σ_l of the mean squared difference, over all elements (lengths=None) or over those that are no padding.

    Args:
        token_axes: the axes of the whole tensor (batch is 0) that run over tokens.
    """
    total = torch.zeros((), dtype=torch.float64)
    for own, other in zip(student, teacher, strict=True):
        squares = (own.double() - other.detach().double()) ** 2
        if lengths is None:
            total = total + squares.sum() / squares.numel()
            continue
        kept = []
        for sample, valid in enumerate(lengths):
            cut = squares[sample]
            for axis in token_axes:
                cut = cut.narrow(axis - 1, 0, valid)
            kept.append(cut.flatten())
        total = total + torch.cat(kept).sum() / sum(len(part) for part in kept)
    return total


def soft_cross_entropy_of_positions(
    student: Sequence[Tensor], teacher: Sequence[Tensor], lengths: Sequence[int], temperature: float = 1.0
) -> Tensor:
    """Start plus end: −Σ_{i ≤ n_b} p_T(i) log p_S(i), softmax over the valid positions, averaged over the batch."""
    total = torch.zeros((), dtype=torch.float64)
    for own, other in zip(student, teacher, strict=True):
        for sample, valid in enumerate(lengths):
            target = _softmax(other[sample, :valid].detach().double() / temperature)
            predicted = _softmax(own[sample, :valid].double() / temperature)
            total = total - (target * torch.log(predicted)).sum() / len(lengths)
    return total


def cross_entropy_of_positions(logits: Sequence[Tensor], labels: Tensor, lengths: Sequence[int]) -> Tensor:
    """(start + end)/2 of −log p(label), averaged over the batch."""
    total = torch.zeros((), dtype=torch.float64)
    for head, scores in enumerate(logits):
        for sample, valid in enumerate(lengths):
            probs = _softmax(scores[sample, :valid].double())
            total = total - torch.log(probs[int(labels[sample, head])]) / len(lengths) / len(logits)
    return total


def _softmax(x: Tensor) -> Tensor:
    powers = torch.exp(x - x.detach().max())
    return powers / powers.sum()
