"""What holds for every quantizer."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.quantization.quantizers.cases import BY_ROW, ODD, QUANTIZERS, STATELESS, WITH_ZERO

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# The clip and its neighbours, zeros of both signs, a denormal of float32 and one of float16.
SPECIAL = (0.0, -0.0, 2.5, -2.5, 2.4980469, -9.0, 1e-40, -1e-40, 6e-8)

every_quantizer = pytest.mark.parametrize("name", QUANTIZERS)
each_stateless = pytest.mark.parametrize("name", STATELESS)


@st.composite
def tensors(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Tensor:
    """One to three dimensions of ordinary and special numbers, in any of the dtypes."""
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    number = st.one_of(st.floats(-4, 4, width=32), st.sampled_from(SPECIAL))
    values = draw(st.lists(number, min_size=math.prod(shape), max_size=math.prod(shape)))
    return torch.tensor(values, dtype=torch.float64).reshape(shape).to(draw(st.sampled_from(dtypes)))


@every_quantizer
@given(x=tensors())
def test_forward_is_codes_times_scale(name: str, x: Tensor) -> None:
    quantizer = QUANTIZERS[name]()
    codes, scale, zero_point = quantizer.codes(x)
    assert codes.shape == x.shape
    assert torch.equal(codes, codes.round())
    assert name not in WITH_ZERO or torch.equal(zero_point, zero_point.round())
    quantized = quantizer(x)
    assert (quantized.shape, quantized.dtype, scale.dtype) == (
        x.shape,
        x.dtype,
        torch.float32 if x.dtype != torch.float64 else scale.dtype,
    )
    assert torch.equal(quantized, ((codes - zero_point) * scale).to(x.dtype))


@every_quantizer
@given(x=tensors())
def test_codes_fit_their_bits(name: str, x: Tensor) -> None:
    """At most 2^bits levels; one less where there are as many below zero as above: 255 at 8 bits, 3 at 2."""
    quantizer = QUANTIZERS[name]()
    codes, _, zero_point = quantizer.codes(x)
    assert codes.max() - codes.min() <= 2**quantizer.bits - 1
    if name in ODD:
        assert (codes - zero_point).abs().max() <= 2 ** (quantizer.bits - 1) - 1


@pytest.mark.parametrize("name", WITH_ZERO)
@given(x=tensors())
def test_idempotent(name: str, x: Tensor) -> None:
    """The codes of what is on the grid are its codes; the values may differ by the last place of the scale."""
    quantizer = QUANTIZERS[name]()
    once = quantizer(x)
    assert torch.equal(quantizer.codes(once)[0], quantizer.codes(x)[0])
    torch.testing.assert_close(quantizer(once), once, rtol=2 * torch.finfo(x.dtype).eps, atol=0.0)


@each_stateless
@given(x=tensors(), seed=st.integers(0, 99))
def test_gradient_passes_inside_the_clip_only(name: str, x: Tensor, seed: int) -> None:
    """arXiv:2009.12812, released code: the boundary itself gets 0."""
    quantizer = QUANTIZERS[name]()
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.dtype)
    x.requires_grad_()
    quantizer(x).backward(upstream)
    inside = (
        torch.ones_like(x) if quantizer.clip is None else ((x > -quantizer.clip) & (x < quantizer.clip)).to(x.dtype)
    )
    assert x.grad.dtype == x.dtype
    assert torch.equal(x.grad, upstream * inside)


@pytest.mark.parametrize("name", ODD)
@given(x=tensors())
def test_odd(name: str, x: Tensor) -> None:
    quantizer = QUANTIZERS[name]()
    assert torch.equal(quantizer(-x), -quantizer(x))


@every_quantizer
def test_switched_off_it_passes_everything(name: str) -> None:
    quantizer, x = QUANTIZERS[name](), torch.tensor([[0.3, -7.0, 1.0]], requires_grad=True)
    quantizer.enabled = False
    passed = quantizer(x)
    passed.sum().backward()
    assert torch.equal(passed, x)
    assert torch.equal(x.grad, torch.ones_like(x))


@every_quantizer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_stay_zeros(name: str, dtype: torch.dtype) -> None:
    """The released code divides 0 by 0 here."""
    x = torch.zeros(3, 4, dtype=dtype, requires_grad=True)
    quantized = QUANTIZERS[name]()(x)
    quantized.sum().backward()
    assert not quantized.any()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("name", BY_ROW)
@given(x=tensors())
def test_a_row_does_not_see_the_others(name: str, x: Tensor) -> None:
    quantizer = QUANTIZERS[name]()
    x = x.reshape(-1, x.shape[-1])
    assert torch.equal(quantizer(x), torch.cat([quantizer(row[None]) for row in x]))


@each_stateless
def test_no_parameters_and_no_new_state_unless_static(name: str) -> None:
    quantizer = QUANTIZERS[name]()
    assert not list(quantizer.parameters())
    assert list(quantizer.state_dict()) == {"uniform 8 bits static": ["maximum"], "affine 8 bits static": ["ends"]}.get(
        name, []
    )


@each_stateless
def test_calibrating_a_dynamic_quantizer_changes_nothing(name: str) -> None:
    quantizer, x = QUANTIZERS[name](), torch.tensor([0.3, -0.2, 1.0])
    before = quantizer(x)
    quantizer.calibrate(torch.tensor([2.0]))
    assert torch.equal(quantizer(x), before) is not name.endswith("static")
