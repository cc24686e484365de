"""Ternary weights: arXiv:1605.04711 §2.2 as arXiv:2009.12812 §3.1 uses it."""

from __future__ import annotations

import ast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer


def test_by_hand() -> None:
    # mean|w| = 1.8/4 = 0.45, Δ = 0.315; kept 0.5 and 0.9, α = 0.7
    quantized = TernaryQuantizer()(torch.tensor([0.5, -0.3, 0.1, -0.9]))
    torch.testing.assert_close(quantized, torch.tensor([0.7, 0.0, 0.0, -0.7]))


def test_weights_are_clamped_first() -> None:
    # clamped [2.5, −1, 0, 1]: mean 1.125, Δ = 0.7875; kept 2.5, 1 and 1, α = 1.5
    quantized = TernaryQuantizer()(torch.tensor([4.0, -1.0, 0.0, 1.0]))
    assert torch.equal(quantized, torch.tensor([1.5, -1.5, 0.0, 1.5]))


def test_a_matrix_shares_one_scale_or_each_row_has_its_own() -> None:
    weights = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.25, 0.125, 0.0, -0.125]])
    # tensor: mean 0.3125, Δ = 0.21875; kept 1, 1, 0.25, α = 0.75
    expected = torch.tensor([[0.75, -0.75, 0.0, 0.0], [0.75, 0.0, 0.0, 0.0]])
    assert torch.equal(TernaryQuantizer()(weights), expected)
    # second row: mean 0.125, Δ = 0.0875; all three kept, α = 0.5/3
    third = 0.5 / 3
    expected = torch.tensor([[1.0, -1.0, 0.0, 0.0], [third, third, 0.0, -third]])
    torch.testing.assert_close(TernaryQuantizer(granularity="per_channel")(weights), expected)


def test_a_weight_at_the_threshold_becomes_zero() -> None:
    # threshold 1: Δ = mean = 1, and 1 > 1 does not hold
    quantized = TernaryQuantizer(threshold=1.0)(torch.tensor([2.0, -1.0, 1.0, 0.0]))
    assert torch.equal(quantized, torch.tensor([2.0, 0.0, 0.0, 0.0]))


@given(
    values=st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=40),
    threshold=st.sampled_from([0.0, 0.5, 0.7, 1.0]),
)
def test_formula_in_numpy(values: list[float], threshold: float) -> None:
    weights = np.clip(np.array(values, dtype=np.float64), -2.5, 2.5)
    magnitude = np.abs(weights)
    kept = magnitude > threshold * magnitude.mean()
    alpha = magnitude[kept].mean() if kept.any() else 0.0
    # float64 through and through, so that both sides decide alike at the threshold
    quantized = TernaryQuantizer(threshold=threshold)(torch.tensor(values, dtype=torch.float64)).numpy()
    near = np.isclose(magnitude, threshold * magnitude.mean(), rtol=1e-12, atol=0)
    if not near.any():
        np.testing.assert_allclose(quantized, alpha * np.sign(weights) * kept, rtol=1e-12)
    assert len(np.unique(quantized)) <= 3


@pytest.mark.parametrize("named", ["threshold=-0.1", "granularity='column'", "clip=0"])
def test_refuses_wrong_arguments(named: str) -> None:
    name, value = named.split("=")
    with pytest.raises(ValueError, match=named):
        TernaryQuantizer(**{name: ast.literal_eval(value)})
