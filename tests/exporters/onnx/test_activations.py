"""Activations as whole numbers: onnxruntime's codes are those of the quantizer that was trained.

Q largest code; a value that lies between two codes to within float32's rounding may go to either.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from qat_lightning.exporters.onnx.activations import Simulated, float_input, integer_input
from qat_lightning.quantization.quantizers.affine import AffineQuantizer
from qat_lightning.quantization.quantizers.base import Quantizer
from qat_lightning.quantization.quantizers.binary import BinaryQuantizer
from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer
from tests.exporters.onnx.graphs import Graph
from tests.quantization.quantizers.cases import QUANTIZERS, STATELESS


def _learned(value: float, **options: object) -> LSQQuantizer:
    quantizer = LSQQuantizer(**options)  # type: ignore[arg-type]
    nn.init.constant_(quantizer.step_size, value)
    return quantizer


def _static(maximum: float, **options: object) -> UniformQuantizer:
    quantizer = UniformQuantizer(scale="static", **options)  # type: ignore[arg-type]
    quantizer.calibrate(torch.tensor([0.1, -maximum]))
    return quantizer


ANY: dict[str, Quantizer] = {
    "8 bits": UniformQuantizer(),
    "8 bits, wide clip": UniformQuantizer(clip=100.0),
    "8 bits without clip": UniformQuantizer(clip=None),
    "4 bits": UniformQuantizer(bits=4),
    "4 bits without clip": UniformQuantizer(bits=4, clip=None),
    "2 bits": UniformQuantizer(bits=2),
    "8 bits static": _static(1.7),
    "5 bits static": _static(1.7, bits=5),
    "static, not calibrated": UniformQuantizer(scale="static"),
    "threshold 8 bits": _learned(1.3),
    "threshold 3 bits": _learned(1.3, bits=3),
    "step 8 bits": _learned(0.013, parametrization="step_size"),
    "step 4 bits": _learned(0.13, parametrization="step_size", bits=4),
    "unsigned step 8 bits": _learned(0.013, parametrization="step_size", signed=False),
    "unsigned threshold 4 bits": _learned(1.3, bits=4, signed=False),
}
PROBABILITIES: dict[str, Quantizer] = {
    "8 bits": UniformQuantizer(),
    "3 bits": UniformQuantizer(bits=3),
    "8 bits, narrow clip": UniformQuantizer(clip=0.4),
    "8 bits without clip": UniformQuantizer(clip=None),
}
"""Where there are not as many codes below zero as above."""


class _Codes(nn.Module):
    """(x, probabilities) → codes, scale and zero of each quantizer."""

    def __init__(self) -> None:
        super().__init__()
        self.any = nn.ModuleList(integer_input(quantizer) for quantizer in ANY.values())
        self.probabilities = nn.ModuleList(integer_input(quantizer, True) for quantizer in PROBABILITIES.values())

    def forward(self, x: Tensor, probabilities: Tensor) -> list[Tensor]:
        outputs = [output for inputs in self.any for output in inputs(x)]
        return outputs + [output for inputs in self.probabilities for output in inputs(probabilities)]


Answer = dict[str, tuple[Tensor, float, int]]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return Graph(_Codes(), torch.randn(5), torch.rand(5), free=([0], [0]))


def _run(graph: Graph, x: Tensor, probabilities: Tensor) -> tuple[Answer, Answer]:
    outputs = iter(graph(x, probabilities))
    answers = [
        {name: (next(outputs), next(outputs), next(outputs)) for name in names} for names in (ANY, PROBABILITIES)
    ]
    for answer in answers:
        for codes, scale, zero in answer.values():
            assert codes.dtype == zero.dtype == torch.uint8
            assert scale.dtype == torch.float32
            assert scale.shape == zero.shape == ()
    return tuple({name: (c, float(s), int(z)) for name, (c, s, z) in answer.items()} for answer in answers)  # type: ignore[return-value]


def _check(answer: Answer, quantizers: dict[str, Quantizer], x: Tensor) -> None:
    """Compare with the codes in training; both may differ by one where x lies between two codes."""
    for name, quantizer in quantizers.items():
        codes, scale, zero = answer[name]
        trained, trained_scale, zero_point = quantizer.codes(x)
        assert scale == pytest.approx(float(trained_scale), rel=3e-7), name
        signed, expected = codes.numpy().astype(int) - zero, (trained - zero_point).numpy()
        unrounded = x.double().numpy() / scale
        tie = np.abs(unrounded - np.floor(unrounded) - 0.5) < 1e-6 * (1 + np.abs(unrounded))
        np.testing.assert_array_equal(signed[~tie], expected[~tie], err_msg=name)
        assert np.abs(signed - expected).max() <= 1, name


_NUMBERS = st.floats(-300, 300, width=32) | st.floats(-3, 3, width=32) | st.floats(-(2**-7), 2**-7, width=32)


@given(st.lists(_NUMBERS, min_size=1, max_size=30), st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30))
def test_codes_are_the_quantizers(graph: Graph, numbers: list[float], probabilities: list[float]) -> None:
    x, p = torch.tensor(numbers), torch.tensor(probabilities)
    whole, positive = _run(graph, x, p)
    _check(whole, ANY, x)
    _check(positive, PROBABILITIES, p)


@pytest.mark.parametrize(
    "numbers",
    [
        [0.0, -0.0, 0.0],
        [2.5, -2.5, 2.4999998, -2.5000002],
        [-1e30, 0.5, 1e-30],
        [3.4e38, -3.4e38, 1.0],
        [-7.0],
        [7.0],
        [1e-40, -1e-42, 0.0],
        [1e-38, 2e-38, -3e-36],
    ],
    ids=str,
)
def test_extremes(graph: Graph, numbers: list[float]) -> None:
    x = torch.tensor(numbers)
    p = (x.abs() / x.abs().max().clamp(min=1)).clamp(max=1)
    whole, positive = _run(graph, x, p)
    _check(whole, ANY, x)
    _check(positive, PROBABILITIES, p)


@pytest.mark.parametrize(
    "quantizer",
    [
        UniformQuantizer(granularity="per_channel"),
        UniformQuantizer(granularity="per_group", group_size=2),
        AffineQuantizer(),
        AffineQuantizer(scale="static"),
        TernaryQuantizer(),
        BinaryQuantizer(granularity="per_tensor"),
        nn.Identity(),
    ],
    ids=str,
)
def test_others_have_no_whole_numbers_with_one_scale(quantizer: nn.Module) -> None:
    assert integer_input(quantizer) is None


@pytest.mark.parametrize("name", [*STATELESS, "ternary by group"])
def test_the_others_are_simulated_to_the_last_bit(name: str) -> None:
    make = QUANTIZERS.get(name, partial(TernaryQuantizer, granularity="per_group", group_size=2))
    x, quantizer = 2 * torch.randn(3, 4, 6), make()
    simulated = float_input(quantizer)
    assert isinstance(simulated, Simulated)
    assert torch.equal(simulated(x), quantizer(x))
