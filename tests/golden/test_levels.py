"""Binary weights and quantizers with all 2^bits levels equal their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat_lightning.quantization.quantizers.affine import AffineQuantizer
from qat_lightning.quantization.quantizers.binary import BinaryQuantizer
from tests.golden import learned_steps as reference

TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.float64: {"rtol": 1e-9, "atol": 1e-9}}
both_types = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
every_grouping = pytest.mark.parametrize(
    ("granularity", "group_size"), [("per_tensor", None), ("per_channel", None), ("per_group", 4)]
)
RANGES = ("minmax", "symmetric", "mean")


def drawn(seed: int, *shape: int) -> np.ndarray:
    """Within ±2.4, so that no clip of 2.5 has a say; exact in float32."""
    values = np.random.default_rng(seed).normal(size=shape)
    return np.clip(values, -2.4, 2.4).astype(np.float32).astype(np.float64)


def test_references_by_hand() -> None:
    np.testing.assert_allclose(reference.binary(np.array([0.5, -1.5, 0.0, -2.0])), [1, -1, 1, -1])
    # min-max, 2 bits: 0, 1, 2, 3
    np.testing.assert_allclose(reference.affine(np.array([0.0, 0.6, 2.4, 3.0]), 2, "minmax"), [0, 1, 2, 3])
    # mean|x| = 2, above it 3 and 4: T = 3.5, levels ∓3.5 and ∓7/6
    x = np.array([0.1, -0.9, 3.0, -4.0])
    np.testing.assert_allclose(reference.affine(x, 2, "mean"), np.array([7 / 6, -7 / 6, 3.5, -3.5]))
    np.testing.assert_allclose(reference.affine(x, 2, "symmetric"), np.array([4 / 3, -4 / 3, 4.0, -4.0]))


@both_types
@every_grouping
def test_binary(granularity: str, group_size: int | None, dtype: torch.dtype) -> None:
    w = drawn(1, 6, 8)
    w[2, 3] = 0.0  # its sign is +1
    w[4] = 0.0  # a row, and two groups, of zeros
    expected = reference.grouped(reference.binary, w, granularity, group_size)
    ours = BinaryQuantizer(granularity=granularity, group_size=group_size)(torch.tensor(w, dtype=dtype))
    torch.testing.assert_close(ours.double(), torch.from_numpy(expected), **TOLERANCE[dtype])
    if granularity != "per_tensor":
        assert not ours[4].any()
    assert ours[2, 3] > 0


def test_binary_zeros() -> None:
    for granularity in ("per_tensor", "per_channel"):
        assert not BinaryQuantizer(granularity=granularity)(torch.zeros(3, 4)).any()


@both_types
@every_grouping
@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_affine(bits: int, kind: str, granularity: str, group_size: int | None, dtype: torch.dtype) -> None:
    x = drawn(bits, 6, 8) + 0.1 * (kind == "minmax")
    x = np.clip(x, -2.4, 2.4).astype(np.float32).astype(np.float64)
    expected = reference.grouped(lambda part: reference.affine(part, bits, kind), x, granularity, group_size)
    quantizer = AffineQuantizer(bits=bits, granularity=granularity, range=kind, group_size=group_size)
    ours = quantizer(torch.tensor(x, dtype=dtype))
    torch.testing.assert_close(ours.double(), torch.from_numpy(expected), **TOLERANCE[dtype])


@pytest.mark.parametrize("kind", RANGES)
@given(bits=st.integers(2, 6), seed=st.integers(0, 999))
def test_no_more_than_2_to_the_bits_levels(kind: str, bits: int, seed: int) -> None:
    """The released 4-bit option gives 17 levels at ±1.067·T; here 16 at most, evenly from end to end."""
    x = drawn(seed, 40, 40)
    values = AffineQuantizer(bits=bits, range=kind)(torch.from_numpy(x))
    found = np.unique(values.numpy().round(9))
    assert len(found) <= 2**bits
    magnitude = np.abs(x)
    low, high = {
        "minmax": (x.min(), x.max()),
        "symmetric": (-magnitude.max(), magnitude.max()),
        "mean": np.array([-1, 1]) * magnitude[magnitude > magnitude.mean()].mean(),
    }[kind]
    assert low - 1e-9 <= found.min()
    assert found.max() <= high + 1e-9
    places = (found - low) / (high - low) * (2**bits - 1)
    np.testing.assert_allclose(places, places.round(), atol=1e-6)


def test_four_bit_weights_reach_both_ends_and_sixteen_levels() -> None:
    x = drawn(0, 60, 60)
    bound = np.abs(x)[np.abs(x) > np.abs(x).mean()].mean()
    found = AffineQuantizer(bits=4, range="mean")(torch.from_numpy(x)).unique().numpy()
    assert len(np.unique(found.round(9))) == 16
    assert (found.min(), found.max()) == pytest.approx((-bound, bound))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize("value", [0.0, 0.7, -1.9, 30.0])
def test_a_constant_tensor_is_finite_and_its_own_level_by_min_and_max(
    value: float, kind: str, dtype: torch.dtype
) -> None:
    x = torch.full((3, 5), value, dtype=dtype)
    ours = AffineQuantizer(bits=8, range=kind, clip=None)(x)
    assert ours.isfinite().all()
    # one value alone is both ends; ∓|value| are levels of the symmetric ranges
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)
