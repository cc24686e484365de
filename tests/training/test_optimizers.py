"""BertAdam against its formula, step by step in float64 numpy."""

import numpy as np
import torch

from qat_lightning.training.optimizers import BertAdam


def reference(weight, gradients, lr, decay, clip, first=0.9, second=0.999, eps=1e-6):
    """The released BertAdam: no bias correction, clip of each tensor's norm, decoupled decay (arXiv:2009.12812)."""
    mean, square = np.zeros_like(weight), np.zeros_like(weight)
    for gradient in gradients:
        norm = np.linalg.norm(gradient)
        gradient = gradient * min(1.0, clip / (norm + 1e-6)) if clip else gradient
        mean = first * mean + (1 - first) * gradient
        square = second * square + (1 - second) * gradient**2
        weight = weight - lr * (mean / (np.sqrt(square) + eps) + decay * weight)
    return weight


def train(weight, gradients, **settings):
    parameter = torch.nn.Parameter(torch.from_numpy(weight.copy()))
    optimizer = BertAdam([parameter], **settings)
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    return parameter.detach().numpy()


def test_equals_the_formula_with_and_without_clipping():
    draw = np.random.default_rng(0)
    weight, gradients = draw.normal(size=(4, 3)), [draw.normal(size=(4, 3)) * scale for scale in (0.01, 3.0, 1.0)]
    for clip in (1.0, 0.0):
        trained = train(weight, gradients, lr=0.05, weight_decay=0.1, clip=clip)
        np.testing.assert_allclose(trained, reference(weight, gradients, 0.05, 0.1, clip), rtol=1e-9)


def test_first_step_is_not_bias_corrected():
    # m/√v = 0.1 g / √(0.001 g²) = 0.1/√0.001 ≈ 3.16 for a small gradient; with bias correction it would be 1
    moved = train(np.array([0.0]), [np.array([0.5])], lr=1.0, weight_decay=0.0, clip=0.0, eps=0.0)
    np.testing.assert_allclose(moved, [-0.1 / np.sqrt(0.001)], rtol=1e-9)


def test_parameter_without_gradient_is_bit_identical_decay_included():
    trained, untouched = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = BertAdam([trained, untouched], lr=0.1, weight_decay=0.5)
    trained.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(untouched, torch.ones(3))
    assert not torch.equal(trained, torch.ones(3))


def test_state_survives_a_save():
    draw = np.random.default_rng(1)
    weight, gradients = draw.normal(size=(5,)), [draw.normal(size=(5,)) for _ in range(4)]
    whole = train(weight, gradients, lr=0.1)
    parameter = torch.nn.Parameter(torch.from_numpy(weight.copy()))
    first = BertAdam([parameter], lr=0.1)
    for gradient in gradients[:2]:
        parameter.grad = torch.from_numpy(gradient.copy())
        first.step()
    second = BertAdam([parameter], lr=0.1)
    second.load_state_dict(first.state_dict())
    for gradient in gradients[2:]:
        parameter.grad = torch.from_numpy(gradient.copy())
        second.step()
    np.testing.assert_array_equal(parameter.detach().numpy(), whole)
