"""Eigenvalues against dense Hessians, of functions with a known one, a small network and a ternary BERT."""

from functools import partial

import pytest
import torch
from torch import nn

from qat_lightning.analysis.hessian import hessian_spectrum, top_eigenvalues, with_norms
from qat_lightning.distillation.losses.logits import TaskLoss
from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.convert import QuantizationRule, open_attention, quantize
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer
from tests.tiny_models import tiny_batch, tiny_model


def dense_hessian(loss, parameters: list[torch.Tensor]) -> torch.Tensor:
    """A backward pass for each entry of the gradient, all at once."""
    gradients = torch.autograd.grad(loss(), parameters, create_graph=True, allow_unused=True, materialize_grads=True)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    every = torch.eye(len(flat), dtype=flat.dtype)
    rows = torch.autograd.grad(flat, parameters, every, is_grads_batched=True, allow_unused=True)
    blocks = [
        torch.zeros(len(flat), parameter.numel()) if row is None else row.flatten(1)
        for row, parameter in zip(rows, parameters, strict=True)
    ]
    return torch.cat(blocks, 1).detach()


def by_magnitude(values: torch.Tensor, top: int) -> list[float]:
    return values[values.abs().argsort(descending=True)][:top].tolist()


def quadratic(eigenvalues: list[float], kind: torch.dtype = torch.float64) -> tuple:
    """½ xᵀ A x with these eigenvalues, at a random point."""
    basis = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), dtype=torch.float64))[0]
    matrix = (basis * torch.tensor(eigenvalues, dtype=torch.float64) @ basis.T).to(kind)
    point = torch.randn(len(eigenvalues), dtype=kind, requires_grad=True)
    return (lambda: 0.5 * point @ matrix @ point), [point]


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_quadratic_has_its_own(kind: torch.dtype) -> None:
    loss, parameters = quadratic([9, -8, 5, 3, -1, *[0.1] * 20], kind)
    assert top_eigenvalues(loss, parameters, top=3) == pytest.approx([9, -8, 5], rel=1e-4)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_small_network_is_within_one_per_cent_of_its_dense_hessian(kind: torch.dtype) -> None:
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(kind)
    inputs, labels = torch.randn(8, 4, dtype=kind), torch.randint(3, (8,))
    batches = [{"x": inputs, "y": labels}, {"x": -inputs, "y": labels}]
    parameters = list(network.parameters())

    def loss(batch):
        return nn.functional.cross_entropy(network(batch["x"]), batch["y"])

    for chosen in (loss, with_norms(loss, parameters)):
        spectrum = hessian_spectrum(chosen, parameters, batches, top=4)
        for batch, own in zip(batches, spectrum, strict=True):
            dense = dense_hessian(partial(chosen, batch), parameters)
            assert torch.allclose(dense, dense.T, atol=1e-5)
            assert own == pytest.approx(by_magnitude(torch.linalg.eigvalsh(dense), 4), rel=2e-3)


def quantized_bert() -> nn.Module:
    model = tiny_model(
        "bert",
        num_hidden_layers=1,
        hidden_size=8,
        num_attention_heads=2,
        intermediate_size=8,
        vocab_size=12,
        max_position_embeddings=4,
    )
    rules = [
        QuantizationRule("embeddings.word", weight=TernaryQuantizer),
        QuantizationRule("layers.*", TernaryQuantizer, UniformQuantizer),
    ]
    return quantize(open_attention(model), rules).eval()


def small_batch() -> dict[str, torch.Tensor]:
    batch = tiny_batch("bert", lengths=(4, 2))
    return batch | {"input_ids": batch["input_ids"] % 12}


def test_a_ternary_bert_has_the_hessian_that_its_estimators_give() -> None:
    model, batch = quantized_bert(), small_batch()
    observe, parameters = SignalCapture(model), list(model.parameters())

    def loss(batch):
        return TaskLoss()(observe(batch), {}, batch)

    dense = dense_hessian(lambda: loss(batch), parameters)
    assert torch.allclose(dense, dense.T, atol=1e-4 * float(dense.abs().max()))
    (found,) = hessian_spectrum(loss, parameters, [batch], top=3)
    assert found == pytest.approx(by_magnitude(torch.linalg.eigvalsh(dense.double()), 3), rel=1e-2)
    assert all(parameter.grad is None for parameter in parameters)
    assert hessian_spectrum(loss, parameters, [batch], top=3) == [found]


def test_frozen_and_unused_parameters() -> None:
    loss, (point,) = quadratic([3.0, 2.0, 1.0])
    frozen, unused = torch.ones(4), torch.ones(4, requires_grad=True)
    assert top_eigenvalues(loss, [frozen, point, unused], top=1) == pytest.approx([3], rel=1e-4)
    assert top_eigenvalues(lambda: unused.sum(), [unused], top=1) == pytest.approx([0], abs=1e-6)


def test_the_norms_are_plain_and_zeros_are_left_out() -> None:
    weight, zeros = torch.tensor([3.0, 4.0], requires_grad=True), torch.zeros(2, requires_grad=True)
    penalised = with_norms(lambda batch: 0.0 * weight.sum(), [weight, zeros], weight=0.01)
    assert penalised({}).item() == pytest.approx(0.05)
    dense = dense_hessian(lambda: penalised({}), [weight, zeros])
    assert torch.linalg.eigvalsh(dense)[-1].item() == pytest.approx(0.01 / 5)  # (I − ŵŵᵀ)/‖w‖
    assert top_eigenvalues(lambda: penalised({}), [weight, zeros], top=1) == pytest.approx([0.01 / 5], rel=1e-3)


def test_refused_arguments() -> None:
    loss, parameters = quadratic([2.0, 1.0])
    with pytest.raises(ValueError, match="top=2 eigenvalues of 2 trainable parameters"):
        top_eigenvalues(loss, parameters, top=2)
    with pytest.raises(ValueError, match="top=1 eigenvalues of 0 trainable parameters"):
        top_eigenvalues(loss, [torch.ones(3)], top=1)
    with pytest.raises(ValueError, match="the Hessian is not finite"):
        top_eigenvalues(lambda: parameters[0].sum().square() / 0, parameters, top=1)


def test_unconverged_eigenvalues_are_left_out_with_a_warning() -> None:
    loss, parameters = quadratic([float(value) for value in range(1, 60)])
    with pytest.warns(UserWarning, match=r"of 3 eigenvalues converged in 1 restarts: set more"):
        found = top_eigenvalues(loss, parameters, top=3, vectors=5, restarts=1, tolerance=1e-12)
    assert len(found) < 3
