"""The straight-through gradient, by itself."""

from __future__ import annotations

import torch

from qat_lightning.quantization.quantizers.straight_through import straight_through

INPUTS = [-3.0, -2.5, -2.4, 0.0, 2.4, 2.5, 3.0]


def test_boundary_gets_no_gradient() -> None:
    # arXiv:2009.12812, released code: 0 at |x| = c
    x, quantized = torch.tensor(INPUTS, requires_grad=True), torch.arange(7.0, requires_grad=True)
    result = straight_through(x, quantized, 2.5)
    assert torch.equal(result, quantized)
    result.backward(torch.arange(1.0, 8.0))
    assert quantized.grad is None
    assert torch.equal(x.grad, torch.tensor([0.0, 0.0, 3.0, 4.0, 5.0, 0.0, 0.0]))


def test_what_is_saved_for_backward_is_one_byte_an_element() -> None:
    saved = []
    x = torch.randn(5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        straight_through(x, x.detach(), 2.5)
    assert [(tensor.dtype, tensor.shape) for tensor in saved] == [(torch.int8, x.shape)]


def test_second_derivatives_pass() -> None:
    """The Hessian of the analysis takes the straight-through estimate as given (arXiv:2211.11014, released code)."""
    x = torch.tensor([0.5, 3.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(straight_through(x, x.detach(), 2.5).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert torch.equal(second, torch.tensor([2.0, 0.0]))


def test_vmap_equals_a_loop() -> None:
    x = torch.randn(3, 4)
    upstream = torch.randn(3, 4)

    def pull(x: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
        return torch.func.vjp(lambda x: straight_through(x, x.round(), 1.0), x)[1](upstream)[0]

    assert torch.equal(torch.func.vmap(pull)(x, upstream), upstream * (x.abs() < 1))
