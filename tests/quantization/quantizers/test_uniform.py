"""Uniform symmetric quantization: arXiv:2009.12812 §3.2, symmetric as in the released code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat_lightning.quantization.quantizers.uniform import UniformQuantizer


def test_by_hand_8_bits() -> None:
    # m = 1.27, s = 100
    quantized = UniformQuantizer()(torch.tensor([1.27, -0.634, 0.004, 0.016, 0.0]))
    torch.testing.assert_close(quantized, torch.tensor([1.27, -0.63, 0.0, 0.02, 0.0]))


def test_ties_round_to_even() -> None:
    # 3 bits: Q = 3, m = 3, s = 1
    quantized = UniformQuantizer(bits=3, clip=4.0)(torch.tensor([3.0, 0.5, 1.5, 2.5, -0.5, -1.5]))
    assert torch.equal(quantized, torch.tensor([3.0, 0.0, 2.0, 2.0, 0.0, -2.0]))


@given(values=st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=40), bits=st.integers(2, 8))
def test_formula_in_numpy(values: list[float], bits: int) -> None:
    clamped = np.clip(np.array(values, dtype=np.float64), -2.5, 2.5)
    largest = np.abs(clamped).max()
    if largest < 1e-30:
        return
    scale = (2 ** (bits - 1) - 1) / largest
    scaled = clamped * scale
    quantized = UniformQuantizer(bits=bits)(torch.tensor(values, dtype=torch.float64)).numpy()
    # At a tie either neighbour is the nearest; away from ties the formula decides.
    assert np.abs(quantized - clamped).max() <= 0.5 / scale * (1 + 1e-9)
    clear = np.abs(scaled - np.floor(scaled) - 0.5) > 1e-9
    np.testing.assert_allclose(quantized[clear], (np.round(scaled) / scale)[clear], rtol=1e-12)


def test_denormal_numbers_become_zero_not_infinite() -> None:
    x = torch.tensor([1e-40, -1e-42, 0.0])
    codes, scale, _ = UniformQuantizer().codes(x)
    assert scale.isfinite().all()
    assert (scale > 0).all()
    assert not codes.any()
    assert not UniformQuantizer()(x).any()


@given(
    sample=st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3),
    other=st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3),
    calibrated=st.booleans(),
)
def test_static_scale_does_not_depend_on_the_batch(sample: list[float], other: list[float], calibrated: bool) -> None:
    quantizer = UniformQuantizer(scale="static")
    if calibrated:
        quantizer.calibrate(torch.tensor([1.5]))
    both = quantizer(torch.tensor([sample, other]))
    assert torch.equal(both[:1], quantizer(torch.tensor([sample])))


def test_static_scale_before_calibration_is_the_clip() -> None:
    codes, scale, _ = UniformQuantizer(scale="static").codes(torch.tensor([1.0]))
    torch.testing.assert_close(scale.item(), 2.5 / 127, rtol=1e-6, atol=0)
    assert codes.item() == 51


def test_calibration_takes_the_largest_number_seen() -> None:
    quantizer = UniformQuantizer(bits=3, scale="static")
    quantizer.calibrate(torch.tensor([0.5, -1.5]))
    assert quantizer.maximum == 1.5
    quantizer.calibrate(torch.tensor([0.75]))
    assert quantizer.maximum == 1.5
    quantizer.calibrate(torch.tensor([-9.0]))
    assert quantizer.maximum == 2.5


def test_static_values_beyond_what_calibration_saw_saturate() -> None:
    quantizer = UniformQuantizer(bits=3, scale="static")
    quantizer.calibrate(torch.tensor([1.5]))
    # s = 3/1.5 = 2
    assert torch.equal(quantizer(torch.tensor([2.0, -1.7, 0.4])), torch.tensor([1.5, -1.5, 0.5]))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"bits": 1}, "bits=1"),
        ({"bits": 9}, "bits=9"),
        ({"scale": "adaptive"}, "scale='adaptive'"),
        ({"scale": "static", "granularity": "per_channel"}, "granularity=per_tensor"),
        ({"scale": "static", "clip": None}, "clip"),
        ({"clip": -1}, "clip=-1"),
    ],
)
def test_refuses_wrong_arguments(arguments: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        UniformQuantizer(**arguments)
