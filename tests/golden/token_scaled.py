"""The losses of language models, token by token in float64. Imports nothing of qat_lightning.

Source: TSLD, arXiv:2308.06744 §4 and its released README. Shapes: B batch, N tokens, V vocabulary.
`labels` (B, N) hold the token that follows each token, −100 where none does.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100


def log_softmax(x: Tensor) -> Tensor:
    x = x.double()
    shifted = x - x.detach().max()
    return shifted - torch.log(torch.exp(shifted).sum())


def soft_cross_entropy_at(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """−Σ_v p_T log p_S of one token's logits (V,)."""
    target = torch.exp(log_softmax(teacher.detach().double() / temperature))
    return -(target * log_softmax(student.double() / temperature)).sum()


def cross_entropy_at(logits: Tensor, label: int) -> Tensor:
    return -log_softmax(logits)[label]


def valid_tokens(labels: Tensor) -> list[tuple[int, int]]:
    """(sample, token) of every token whose successor is known."""
    rows, columns = labels.shape
    return [(row, column) for row in range(rows) for column in range(columns) if int(labels[row, column]) != IGNORED]


def soft_cross_entropy(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """The mean of −Σ_v p_T log p_S over the tokens that count."""
    places = valid_tokens(labels)
    each = [soft_cross_entropy_at(student[place], teacher[place], temperature) for place in places]
    return torch.stack(each).sum() / len(places)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of −log p(label) over the tokens that count."""
    places = valid_tokens(labels)
    return torch.stack([cross_entropy_at(logits[place], int(labels[place])) for place in places]).sum() / len(places)


def token_weights(teacher: Tensor, labels: Tensor, temperature: float = 10.0) -> Tensor:
    """weight_t = exp(CE_t/τ) / Σ_u exp(CE_u/τ) over the valid tokens of each sequence; 0 elsewhere. (B, N)"""
    weights = torch.zeros(labels.shape, dtype=torch.float64)
    for row, column in valid_tokens(labels):
        surprise = cross_entropy_at(teacher[row, column].detach(), int(labels[row, column]))
        weights[row, column] = torch.exp(surprise / temperature)
    return weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


def token_scaled(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 10.0, over_batch: str = "sum"
) -> Tensor:
    """Σ_t weight_t · (−Σ_v p_T log p_S)_t, summed or averaged over the batch; p at temperature 1."""
    weights = token_weights(teacher, labels, temperature)
    total = torch.zeros((), dtype=torch.float64)
    for place in valid_tokens(labels):
        total = total + weights[place] * soft_cross_entropy_at(student[place], teacher[place])
    return total if over_batch == "sum" else total / len(labels)
