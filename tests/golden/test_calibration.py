"""Where a learned threshold or step begins: percentile, LSQ's, min-max and Kullback-Leibler (arXiv:2101.05938 §3.3)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from tests.golden import learned_steps as reference

INITIALIZATIONS = ("percentile", "kl", "lsq", "minmax")
FLOOR = 1e-5
"""Of the parameter, BinaryBERT's (released code)."""
TOLERANCE = {torch.float32: {"rel": 1e-5}, torch.float64: {"rel": 1e-9}}
both_types = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def calibrated(x: np.ndarray, dtype: torch.dtype = torch.float64, **arguments: object) -> np.ndarray:
    """The parameter after `calibrate`, flat."""
    quantizer = LSQQuantizer(**arguments).to(dtype)
    quantizer.calibrate(torch.tensor(x, dtype=dtype))
    return quantizer.step_size.detach().double().reshape(-1).numpy()


def gaussian(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_percentile_by_hand() -> None:
    """n = 200: r = 5. Of −100 … 99 ascending, x_(5) = −95 and x_(195) = 95; with the ends doubled the answer stays."""
    x = np.arange(-100, 100).astype(float)
    assert reference.percentile(x) == 95
    assert reference.percentile(np.where(np.abs(x) > 97, 10 * x, x)) == 95
    # n = 4: r = 0, and x_(n) is the largest
    assert reference.percentile(np.array([1.0, -3.0, 2.0, 5.0])) == 5
    # the lower end decides: 200 values shifted down
    assert reference.percentile(x - 50) == 145


@both_types
@pytest.mark.parametrize("count", [1, 5, 19, 64, 77, 210, 999, 5000])
def test_percentile(count: int, dtype: torch.dtype) -> None:
    x = gaussian(count, count).astype(np.float32).astype(np.float64) - 0.4
    ours = calibrated(x, dtype, bits=2, parametrization="clip_threshold", initialization="percentile")
    assert ours == pytest.approx(reference.percentile(x), **TOLERANCE[dtype])


def test_percentile_of_a_gaussian_is_1_96_sigma() -> None:
    """The quantile function at 0.975; its sampling error at n = 400,000 is √(0.975·0.025/n)/0.0584 = 0.004."""
    ours = calibrated(gaussian(0, 400_000) * 3, bits=2, parametrization="clip_threshold", initialization="percentile")
    assert ours.item() / 3 == pytest.approx(1.95996, abs=0.02)


@both_types
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_lsq(bits: int, signed: bool, dtype: torch.dtype) -> None:
    """s = 2·mean|v|/√Q_P"""
    x = gaussian(bits, 30, 7)
    ours = calibrated(x, dtype, bits=bits, parametrization="step_size", signed=signed, initialization="lsq")
    assert ours == pytest.approx(reference.lsq_step(x, bits, signed), **TOLERANCE[dtype])


@both_types
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_lsq_as_a_threshold(bits: int, dtype: torch.dtype) -> None:
    """α = s·Q"""
    x = gaussian(bits, 30, 7)
    ours = calibrated(x, dtype, bits=bits, parametrization="clip_threshold", initialization="lsq")
    assert ours == pytest.approx(reference.lsq_step(x, bits) * reference.largest_code(bits), **TOLERANCE[dtype])


@both_types
def test_minmax(dtype: torch.dtype) -> None:
    x = gaussian(4, 30, 7).astype(np.float32)
    assert calibrated(x, dtype, bits=4, parametrization="clip_threshold", initialization="minmax") == np.abs(x).max()


@pytest.mark.parametrize(("granularity", "group_size", "width"), [("per_channel", None, 90), ("per_group", 45, 45)])
@pytest.mark.parametrize("initialization", ["percentile", "lsq", "minmax"])
def test_each_row_or_group_by_itself(initialization: str, granularity: str, group_size: int | None, width: int) -> None:
    x = gaussian(8, 6, 90) * np.arange(1, 7)[:, None]
    one = {
        "percentile": reference.percentile,
        "lsq": lambda row: reference.lsq_step(row, 3) * reference.largest_code(3),
        "minmax": lambda row: np.abs(row).max(),
    }[initialization]
    ours = calibrated(
        x,
        bits=3,
        granularity=granularity,
        group_size=group_size,
        parametrization="clip_threshold",
        initialization=initialization,
    )
    assert ours == pytest.approx([one(row) for row in x.reshape(-1, width)], rel=1e-9)


# Of |x|'s maximum, read off one 768×768 Gaussian with the released algorithm, and how far another sample may be from it:
# three times √2 times the scatter between samples (`reference.kl` on 8 of them: 0.011, 0.016, 0.021, 0.030, 0.052), which
# comes from the maximum itself and, for many bits, from bins that hold one value or none.
PUBLISHED = {2: (0.31, 0.05), 3: (0.42, 0.07), 4: (0.48, 0.09), 6: (0.72, 0.13), 8: (0.85, 0.22)}


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    return gaussian(0, 768, 768)


@pytest.mark.parametrize("bits", PUBLISHED)
def test_kl_gives_the_published_ratios(large: np.ndarray, bits: int) -> None:
    ratio, tolerance = PUBLISHED[bits]
    ours = (
        calibrated(large, bits=bits, parametrization="clip_threshold", initialization="kl").item() / np.abs(large).max()
    )
    assert ours == pytest.approx(ratio, abs=tolerance)


def test_kl_keeps_more_of_the_tail_with_more_bits(large: np.ndarray) -> None:
    ours = [
        calibrated(large, bits=bits, parametrization="clip_threshold", initialization="kl").item() for bits in PUBLISHED
    ]
    assert ours == sorted(ours)
    assert ours[0] < 0.5 * ours[-1]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_kl_is_near_the_naive_search(bits: int) -> None:
    """Both readings of what lies beyond a cut, in the divergence or not, give nearly the same cut of a Gaussian."""
    x = gaussian(bits, 200, 200)
    ours = calibrated(x, bits=bits, parametrization="clip_threshold", initialization="kl").item()
    assert ours == pytest.approx(reference.kl(x, bits), rel=0.15)


@given(bits=st.integers(2, 8), seed=st.integers(0, 99))
def test_kl_cuts_nothing_off_even_values(bits: int, seed: int) -> None:
    """Their distribution is a straight line, which few points keep as well as many."""
    x = np.random.default_rng(seed).uniform(-1, 1, size=40_000)
    assert calibrated(x, bits=bits, parametrization="clip_threshold", initialization="kl").item() > 0.9


@given(seed=st.integers(0, 99), power=st.integers(-12, 12))
def test_kl_scales_with_the_data(seed: int, power: int) -> None:
    """A power of two scales all bins exactly."""
    x = gaussian(seed, 60, 60)
    arguments = {"bits": 3, "parametrization": "clip_threshold", "initialization": "kl"}
    assert calibrated(x * 2.0**power, **arguments) == pytest.approx(calibrated(x, **arguments) * 2.0**power, rel=1e-6)


@pytest.mark.parametrize("parametrization", ["clip_threshold", "step_size"])
@pytest.mark.parametrize("initialization", INITIALIZATIONS)
@given(
    bits=st.integers(2, 8), count=st.integers(1, 400), seed=st.integers(0, 99), scale=st.sampled_from([1e-6, 1.0, 1e4])
)
def test_every_parameter_is_positive_finite_and_no_larger_than_the_data(
    initialization: str, parametrization: str, bits: int, count: int, seed: int, scale: float
) -> None:
    """Also where √n ≤ 2^(b−1), where the released KL search returns without storing anything."""
    x = gaussian(seed, count) * scale
    ours = calibrated(x, bits=bits, parametrization=parametrization, initialization=initialization).item()
    assert 0 < ours < np.inf
    if initialization != "lsq":
        codes = 1 if parametrization == "clip_threshold" else reference.step_range(bits, True)[1]
        assert ours * codes <= max(np.abs(x).max(), FLOOR * codes) * (1 + 1e-6)


@pytest.mark.parametrize("parametrization", ["clip_threshold", "step_size"])
@pytest.mark.parametrize("initialization", INITIALIZATIONS)
@pytest.mark.parametrize("count", [3, 400])
def test_zeros_get_a_parameter_and_stay_zeros(initialization: str, parametrization: str, count: int) -> None:
    quantizer = LSQQuantizer(bits=4, parametrization=parametrization, initialization=initialization)
    zeros = torch.zeros(count, requires_grad=True)
    quantizer.calibrate(zeros.detach())
    assert quantizer.step_size.isfinite().all()
    assert (quantizer.step_size > 0).all()
    quantizer(zeros).sum().backward()
    assert not quantizer(zeros).any()
    assert zeros.grad.isfinite().all()
    assert quantizer.step_size.grad.isfinite().all()
