"""Losses of sentence encoders, on the embeddings (B, D) that `SignalCapture` returns as logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from qat_lightning.distillation.losses.base import check_weight
from qat_lightning.models.capture import Batch, Signals
from qat_lightning.quantization.quantizers.base import to_float32


class EmbeddingLoss:
    """Mean over the batch of ‖e_student − e_teacher‖²; for normalized embeddings 2 − 2·cos.

    Source: the distillation of sentence encoders, arXiv:2004.09813 §2, up to the factor D.

    >>> student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> EmbeddingLoss()({"logits": [student]}, {"logits": [teacher]}, {})
    tensor(2.)
    """

    sites, needs_teacher = ("logits",), True

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = check_weight(weight)

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        own, other = _embeddings(student), _embeddings(teacher).detach()
        return (own - other).square().sum(-1).mean()


class SimilarityLoss:
    """Mean over all pairs i ≠ j of a batch of (cos(e_i, e_j) of the student − cos(e_i, e_j) of the teacher)².

    Source: similarity-preserving distillation, arXiv:1907.09682 §3, with cosines. 0 for a batch of one sentence.

    >>> student, teacher = torch.eye(2), torch.ones(2, 2)
    >>> SimilarityLoss()({"logits": [student]}, {"logits": [teacher]}, {})
    tensor(1.0000)
    """

    sites, needs_teacher = ("logits",), True

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = check_weight(weight)

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        own, other = (_cosines(_embeddings(signals)) for signals in (student, teacher))
        pairs = ~torch.eye(len(own), dtype=torch.bool, device=own.device)
        return ((own - other.detach()).square() * pairs).sum() / pairs.sum().clamp(min=1)


def _cosines(embeddings: Tensor) -> Tensor:
    unit = functional.normalize(embeddings, dim=-1)
    return unit @ unit.T


def _embeddings(signals: Signals) -> Tensor:
    """Return the embeddings in float32; raise ValueError if the logits are not one vector a sentence."""
    embeddings = to_float32(signals["logits"][0])
    if embeddings.dim() != 2:
        raise ValueError(
            f"a loss on embeddings takes one vector (B, D) for each sentence, and the logits are of shape"
            f" {tuple(embeddings.shape)}: choose losses=logits"
        )
    return embeddings
