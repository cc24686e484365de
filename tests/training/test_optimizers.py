"""BertAdam: what tests/golden/test_bert_adam.py does not compare with the release."""

import pytest
import torch

from qat_lightning.training.optimizers import BertAdam


def test_first_step_is_not_bias_corrected():
    # m/√v = 0.1 g / √(0.001 g²) = 0.1/√0.001 ≈ 3.16 for a small gradient; with bias correction it would be 1
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    weight.grad = torch.tensor([0.5], dtype=torch.float64)
    BertAdam([weight], lr=1.0, weight_decay=0.0, clip=0.0, eps=0.0).step()
    assert weight.item() == pytest.approx(-0.1 / 0.001**0.5, rel=1e-9)


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_only_a_clip_makes_a_large_gradient_count_less(clip):
    """After a step of gradient 1, one of 3 moves the weight as one of 1 does where it is clipped, and more elsewhere."""
    ends = []
    for size in (1.0, 3.0):
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = BertAdam([weight], lr=0.1, weight_decay=0.0, clip=clip)
        for gradient in (1.0, size):
            weight.grad = torch.tensor([gradient])
            optimizer.step()
        ends.append(weight.item())
    assert (abs(ends[0] - ends[1]) < 1e-5) is (clip > 0)
