"""Numbers that stay what they are: codes under autocast, and step sizes under any update."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from qat_lightning.quantization.quantizers.affine import AffineQuantizer
from qat_lightning.quantization.quantizers.lsq import LARGEST, SMALLEST, LSQQuantizer
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer
from qat_lightning.training.module import QATModule
from qat_lightning.training.optimizers import BertAdam
from tests.quantization.quantizers.cases import GRANULARITIES, KINDS

EVERY = {
    f"{name}, {granularity}": partial(make, **given)
    for name, make in KINDS.items()
    for granularity, given in GRANULARITIES.items()
} | {
    "uniform static": partial(UniformQuantizer, scale="static"),
    "affine static": partial(AffineQuantizer, scale="static"),
}
HALF = (torch.bfloat16, torch.float16)


def calibrated(name: str, x: Tensor):
    torch.manual_seed(0)
    quantizer = EVERY[name]()
    quantizer.calibrate(x)
    return quantizer


@pytest.mark.parametrize("name", EVERY)
@given(
    seed=st.integers(0, 10**6), spread=st.sampled_from([1e-6, 0.02, 1.0, 300.0]), low=st.sampled_from(HALF),
    of_autocast=st.booleans(),
)  # fmt: skip
def test_codes_under_autocast_are_those_of_float32(name, seed, spread, low, of_autocast):
    """Of a float32 tensor, and of what an autocast product has made in half precision."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 8, generator=draw) * spread
    given_x = x
    if of_autocast:
        with torch.autocast("cpu", low):
            given_x = x @ torch.randn(8, 8, generator=draw)
        assert given_x.dtype == low
    quantizer = calibrated(name, given_x.float())
    expected = quantizer.codes(given_x.float())
    expected_gradient = gradients(copy.deepcopy(quantizer), given_x.float())
    with torch.autocast("cpu", low):
        found = quantizer.codes(given_x)
        quantized = quantizer(given_x)
        found_gradient = gradients(quantizer, given_x)
    for mine, reference in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, reference)
    codes, scale, zero_point = expected
    assert torch.equal(quantized, ((codes - zero_point) * scale).reshape(given_x.shape).to(given_x.dtype))
    for mine, reference in zip(found_gradient, expected_gradient, strict=True):
        assert torch.equal(mine, reference)


def gradients(quantizer: nn.Module, x: Tensor) -> list[Tensor]:
    """Of what is learned: in float32 too, from an upstream gradient of ones, which half precision holds."""
    if list(quantizer.parameters()):
        quantizer(x).float().sum().backward()
    return [parameter.grad for parameter in quantizer.parameters()]


# --- step sizes

FORMS = [
    {"parametrization": parametrization, "signed": signed, **granularity}
    for parametrization in ("clip_threshold", "step_size")
    for signed in (True, False)
    for granularity in GRANULARITIES.values()
]
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.5),
    "adam": partial(torch.optim.Adam, weight_decay=0.5),
    "adamw": partial(torch.optim.AdamW, weight_decay=0.9),
    "bert adam": partial(BertAdam, weight_decay=0.9),
}
RATES = (0.0, 1e-8, 1e-3, 1.0, 1e4, 1e30)
SIZES = (0.0, 1e-30, 1e-3, 1.0, 1e6, 1e15)
LARGER = (*SIZES, 1e25, 3e38)
"""Their squares overflow, after which an Adam moves nothing any more."""


def module_of(make) -> QATModule:
    """A student that is nothing but learned steps, in all forms; the quantizers of weights decay as of nothing else."""
    student = nn.ModuleList(LSQQuantizer(bits=4, **parametrization) for parametrization in FORMS)
    for quantizer in student:
        quantizer.calibrate(torch.randn(3, 8))
    module = QATModule(student, {}, {}, None, make, lambda step, steps: 1.0, steps=1)
    module.make_optimizer = make
    return module


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_update_brings_a_step_size_to_zero_or_below(name):
    """4 · 2,500 updates, a new optimizer every 250: any sign, gradients up to float32's largest, rates from 0 to 1e30."""
    draw = torch.Generator().manual_seed(7)
    module = module_of(OPTIMIZERS[name])
    learned = [quantizer.step_size for quantizer in module.student]

    def pick(choices):
        return choices[int(torch.randint(len(choices), (), generator=draw))]

    smallest = largest = 0
    for update in range(2500):
        if update % 250 == 0:
            optimizer = OPTIMIZERS[name](learned, lr=1e-3)
        optimizer.param_groups[0]["lr"], size = pick(RATES), pick(LARGER if update >= 1250 else SIZES)
        for step in learned:
            step.grad = size * (2 * torch.rand(step.shape, generator=draw) - 1).sign()
        module.optimizer_step(0, 0, optimizer, None)
        every = torch.cat([step.detach().flatten() for step in learned])
        assert (every >= SMALLEST).all()
        assert (every <= LARGEST).all(), "and so finite, which NaN is not either"
        smallest, largest = smallest + int((every == SMALLEST).sum()), largest + int((every > 1e20).sum())
    assert smallest > 100, "the floor was met"
    assert largest > 100, "and the ceiling was near"
    x = torch.randn(3, 8)
    assert all(quantizer(x).isfinite().all() for quantizer in module.student)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF, torch.float64], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("-inf"), -3.0, 0.0, 1e-40, float("inf")])
def test_an_invalid_step_size_becomes_the_smallest_or_the_largest(value, dtype):
    module = module_of(partial(torch.optim.SGD, lr=1.0))
    module.student.to(dtype)
    optimizer = torch.optim.SGD(module.student.parameters(), lr=0.0)
    for quantizer in module.student:
        quantizer.step_size.data.fill_(value)
    module.optimizer_step(0, 0, optimizer, None)
    largest = 65504.0 if dtype == torch.float16 else 1e30
    expected = torch.tensor(largest if value == float("inf") else SMALLEST, dtype=dtype)
    assert all((quantizer.step_size == expected).all() for quantizer in module.student)
