"""The prediction and task losses of question answering equal an independent computation: values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from qat_lightning.config.instantiate import create_all
from qat_lightning.distillation.losses.logits import LogitDistillationLoss, TaskLoss
from tests.golden import kdqat as reference
from tests.training.runs import composed

TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.float64: {"rtol": 1e-9, "atol": 1e-9}}
both_types = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
LENGTHS = (7, 5, 2)
TOKENS = max(LENGTHS)
WHOLE = (TOKENS, TOKENS, TOKENS)
LABELS = torch.tensor([[1, 6], [0, 4], [1, 1]])


def positions(seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Logits of starts and ends, (B, N) each."""
    generator = torch.Generator().manual_seed(seed)
    return [(3 * torch.randn(3, TOKENS, generator=generator)).to(dtype) for _ in range(2)]


def batch_of(lengths: tuple[int, ...]) -> dict[str, Tensor]:
    mask = (torch.arange(TOKENS) < torch.tensor(lengths)[:, None]).long()
    return {"attention_mask": mask, "labels": LABELS}


def compare(ours: Tensor, theirs: Tensor, own: list[Tensor], other: list[Tensor], dtype: torch.dtype) -> None:
    torch.testing.assert_close(ours.double(), theirs, **TOLERANCE[dtype])
    ours.backward()
    theirs.backward()
    for first, second in zip(own, other, strict=True):
        torch.testing.assert_close(first.grad.double(), second.grad, **TOLERANCE[dtype])


def test_references_by_hand() -> None:
    """Student even over 4 valid positions: log 4 for start and for end, whatever the teacher."""
    even, other = torch.zeros(1, 5), torch.randn(1, 5)
    soft = reference.soft_cross_entropy_of_positions([even, even], [other, other], [4])
    assert soft.item() == pytest.approx(2 * math.log(4))
    assert reference.cross_entropy_of_positions([even, even], torch.tensor([[0, 3]]), [4]).item() == pytest.approx(
        math.log(4)
    )


@both_types
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("lengths", [WHOLE, LENGTHS], ids=["whole", "padded"])
def test_start_and_end_are_added(lengths: tuple[int, ...], temperature: float, dtype: torch.dtype) -> None:
    own = [x.requires_grad_() for x in positions(0, dtype)]
    other = [x.requires_grad_() for x in positions(0, torch.float64)]
    ours = LogitDistillationLoss(temperature=temperature)(
        {"logits": own}, {"logits": positions(1, dtype)}, batch_of(lengths)
    )
    theirs = reference.soft_cross_entropy_of_positions(other, positions(1), lengths, temperature)
    compare(ours, theirs, own, other, dtype)


def test_padding_has_no_say() -> None:
    """Not in the value, nor any gradient, whatever stands there."""
    own, teacher, batch = positions(0), positions(1), batch_of(LENGTHS)
    before = LogitDistillationLoss()({"logits": own}, {"logits": teacher}, batch)
    padding = ~batch["attention_mask"].bool()
    changed = [x.masked_fill(padding, 50.0).requires_grad_() for x in own]
    after = LogitDistillationLoss()(
        {"logits": changed}, {"logits": [x.masked_fill(padding, 70.0) for x in teacher]}, batch
    )
    torch.testing.assert_close(before, after)
    after.backward()
    for x in changed:
        assert x.grad.isfinite().all()
        assert not x.grad[padding].any()


@both_types
@pytest.mark.parametrize("lengths", [WHOLE, LENGTHS], ids=["whole", "padded"])
def test_ground_truth_is_the_mean_of_start_and_end(lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    own = [x.requires_grad_() for x in positions(0, dtype)]
    other = [x.requires_grad_() for x in positions(0, torch.float64)]
    ours = TaskLoss()({"logits": own}, {}, batch_of(lengths))
    compare(ours, reference.cross_entropy_of_positions(other, LABELS, lengths), own, other, dtype)


def test_the_mean_over_classes_is_over_what_can_be_answered() -> None:
    """A sample's n valid positions are its classes: n times smaller, sample by sample."""
    own, teacher, batch = positions(0, torch.float64), positions(1, torch.float64), batch_of(LENGTHS)
    averaged = LogitDistillationLoss(classes="mean")({"logits": own}, {"logits": teacher}, batch)
    expected = 0.0
    for sample, valid in enumerate(LENGTHS):
        one = slice(sample, sample + 1)
        of_sample = reference.soft_cross_entropy_of_positions([x[one] for x in own], [x[one] for x in teacher], [valid])
        expected = expected + of_sample / valid / len(LENGTHS)
    torch.testing.assert_close(averaged, expected, rtol=1e-9, atol=1e-9)


def test_configured_for_kdlsq() -> None:
    """arXiv:2101.05938, released script: (start + end soft-CE)·100, averaged over positions, + (start + end CE)/2."""
    losses = create_all(composed("losses=kdlsq_squad").losses, "losses")
    assert losses.keys() == {"logits", "hidden", "scores", "task"}
    own, teacher = positions(0, torch.float64), positions(1, torch.float64)
    ours = {
        name: losses[name].weight * losses[name]({"logits": own}, {"logits": teacher}, batch_of(WHOLE))
        for name in ("logits", "task")
    }
    soft = reference.soft_cross_entropy_of_positions(own, teacher, WHOLE)
    torch.testing.assert_close(ours["logits"], 100 * soft / TOKENS, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        ours["task"], reference.cross_entropy_of_positions(own, LABELS, WHOLE), rtol=1e-9, atol=1e-9
    )
