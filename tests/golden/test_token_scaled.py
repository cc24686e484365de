"""The losses of language models equal an independent computation, token by token: values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from qat_lightning.config.instantiate import create_all
from qat_lightning.distillation.losses.logits import LogitDistillationLoss, TaskLoss, TokenScaledLoss
from tests.golden import token_scaled as reference
from tests.training.runs import composed

TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.float64: {"rtol": 1e-9, "atol": 1e-9}}
both_types = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
NONE = reference.IGNORED
# The last token has no successor; the second sequence is padded, the third holds a gap.
LABELS = torch.tensor([[3, 1, 4, 1, 5, NONE], [2, 6, NONE, NONE, NONE, NONE], [0, NONE, 5, 3, 5, NONE]])
VOCABULARY = 7
BATCH = {"labels": LABELS, "attention_mask": torch.tensor([[1] * 6, [1] * 3 + [0] * 3, [1] * 6])}


def vocabulary_logits(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(*LABELS.shape, VOCABULARY, generator=generator)).to(dtype)


def compare(ours: Tensor, theirs: Tensor, own: Tensor, other: Tensor, dtype: torch.dtype) -> None:
    assert theirs > 1e-3
    torch.testing.assert_close(ours.double(), theirs, **TOLERANCE[dtype])
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(own.grad.double(), other.grad, **TOLERANCE[dtype])


def pair(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return vocabulary_logits(0, dtype).requires_grad_(), vocabulary_logits(0, torch.float64).requires_grad_()


# --- the reference itself -------------------------------------------------------------------------------------------


def test_weights_by_hand() -> None:
    """Teacher's cross-entropies log 2 and log 4 at τ = 1: weights 2 : 4. A token without a label weighs nothing."""
    teacher = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0], [9.0, 0.0]]])
    weights = reference.token_weights(teacher, torch.tensor([[0, 1, NONE]]), temperature=1.0)
    torch.testing.assert_close(weights, torch.tensor([[1 / 3, 2 / 3, 0.0]], dtype=torch.float64))


def test_references_are_torchs_where_torch_has_them() -> None:
    logits, functional = vocabulary_logits(0).double(), torch.nn.functional
    torch.testing.assert_close(
        reference.cross_entropy(logits, LABELS), functional.cross_entropy(logits.flatten(0, 1), LABELS.flatten())
    )
    teacher, counts = vocabulary_logits(1).double().softmax(-1), LABELS.flatten() != NONE
    torch.testing.assert_close(
        reference.soft_cross_entropy(logits, vocabulary_logits(1), LABELS),
        functional.cross_entropy(logits.flatten(0, 1)[counts], teacher.flatten(0, 1)[counts]),
    )


def test_an_unsurprised_teacher_weighs_all_tokens_alike() -> None:
    """Equal cross-entropies: the sum over the batch of each sequence's mean."""
    teacher = torch.zeros(*LABELS.shape, VOCABULARY)
    student = vocabulary_logits(0)
    rows = [reference.soft_cross_entropy(student[row, None], teacher[row, None], LABELS[row, None]) for row in range(3)]
    torch.testing.assert_close(reference.token_scaled(student, teacher, LABELS), sum(rows))


# --- the losses -----------------------------------------------------------------------------------------------------


@both_types
@pytest.mark.parametrize("over_batch", ["sum", "mean"])
@pytest.mark.parametrize("temperature", [10.0, 1.5])
def test_token_scaled(temperature: float, over_batch: str, dtype: torch.dtype) -> None:
    own, other = pair(dtype)
    loss = TokenScaledLoss(temperature=temperature, batch=over_batch)
    ours = loss({"logits": [own]}, {"logits": [vocabulary_logits(1, dtype)]}, BATCH)
    compare(
        ours, reference.token_scaled(other, vocabulary_logits(1), LABELS, temperature, over_batch), own, other, dtype
    )


def test_defaults_are_the_readmes() -> None:
    """τ = 10, summed over the batch."""
    ours = TokenScaledLoss()({"logits": [vocabulary_logits(0)]}, {"logits": [vocabulary_logits(1)]}, BATCH)
    theirs = reference.token_scaled(vocabulary_logits(0), vocabulary_logits(1), LABELS, 10.0, "sum")
    torch.testing.assert_close(ours.double(), theirs, **TOLERANCE[torch.float32])


@both_types
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_cross_entropy(temperature: float, dtype: torch.dtype) -> None:
    own, other = pair(dtype)
    loss = LogitDistillationLoss(temperature=temperature)
    ours = loss({"logits": [own]}, {"logits": [vocabulary_logits(1, dtype)]}, BATCH)
    compare(ours, reference.soft_cross_entropy(other, vocabulary_logits(1), LABELS, temperature), own, other, dtype)


def test_averaged_over_the_vocabulary() -> None:
    summed, averaged = (
        LogitDistillationLoss(classes=way)(
            {"logits": [vocabulary_logits(0)]}, {"logits": [vocabulary_logits(1)]}, BATCH
        )
        for way in ("sum", "mean")
    )
    torch.testing.assert_close(summed, VOCABULARY * averaged)


@both_types
def test_ground_truth(dtype: torch.dtype) -> None:
    own, other = pair(dtype)
    ours = TaskLoss()({"logits": [own]}, {}, BATCH)
    compare(ours, reference.cross_entropy(other, LABELS), own, other, dtype)


def test_configured_with_the_ground_truth() -> None:
    """losses=token_scaled: both terms with weight 1; without the task, the token-scaled one alone."""
    student, teacher = vocabulary_logits(0), vocabulary_logits(1)
    expected = {
        "tokens": reference.token_scaled(student, teacher, LABELS),
        "task": reference.cross_entropy(student, LABELS),
    }
    nodes = composed("losses=token_scaled", "losses.tokens.batch=sum").losses
    losses = create_all(nodes, "losses")
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        ours = loss.weight * loss({"logits": [student]}, {"logits": [teacher]}, BATCH)
        torch.testing.assert_close(ours.double(), expected[name], **TOLERANCE[torch.float32])


def test_a_sequence_without_a_label_adds_nothing() -> None:
    labels = LABELS.clone()
    labels[1] = NONE
    student = vocabulary_logits(0).requires_grad_()
    ours = TokenScaledLoss()({"logits": [student]}, {"logits": [vocabulary_logits(1)]}, BATCH | {"labels": labels})
    theirs = reference.token_scaled(vocabulary_logits(0), vocabulary_logits(1), labels)
    torch.testing.assert_close(ours.double(), theirs, **TOLERANCE[torch.float32])
    ours.backward()
    assert student.grad.isfinite().all()
    assert not student.grad[1].any()
