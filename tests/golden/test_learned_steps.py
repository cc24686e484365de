"""Learned thresholds and steps equal their closed forms: values, and the gradients of input and parameter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from tests.golden import learned_steps as reference

SCALES = {True: "elements", False: "none"}
BITS = (2, 3, 4, 5, 6, 7, 8)
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.float64: {"rtol": 1e-9, "atol": 1e-9}}
every_width = pytest.mark.parametrize("bits", BITS)
both_types = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def drawn(seed: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and an incoming gradient that float32 holds exactly."""
    generator = np.random.default_rng(seed)
    return tuple(generator.normal(size=shape).astype(np.float32).astype(np.float64) for _ in range(2))


def with_learned(quantizer: LSQQuantizer, x: Tensor, value: float | np.ndarray) -> LSQQuantizer:
    """The quantizer in x's dtype, its parameter at `value`."""
    quantizer = quantizer.to(x.dtype)
    quantizer.calibrate(x)
    with torch.no_grad():
        quantizer.step_size.copy_(torch.as_tensor(value, dtype=x.dtype).reshape(quantizer.step_size.shape))
    return quantizer


def run(quantizer: LSQQuantizer, x: np.ndarray, gradient: np.ndarray, value: float, dtype: torch.dtype) -> list[Tensor]:
    """Output, gradient of the input and gradient of the parameter."""
    values = torch.tensor(x, dtype=dtype, requires_grad=True)
    quantizer = with_learned(quantizer, values.detach(), value)
    output = quantizer(values)
    output.backward(torch.tensor(gradient, dtype=dtype))
    return [output.detach(), values.grad, quantizer.step_size.grad.reshape(-1)]


def compare(ours: list[Tensor], expected: reference.Backward, dtype: torch.dtype) -> None:
    theirs = (expected.output, expected.input_gradient, np.array([expected.learned_gradient]))
    for own, other in zip(ours, theirs, strict=True):
        assert own.dtype == dtype
        torch.testing.assert_close(own.double(), torch.from_numpy(other), **TOLERANCE[dtype])


# --- the reference itself -------------------------------------------------------------------------------------------


def test_threshold_by_hand() -> None:
    """α = 2 and 3 bits, so Q = 3 and a grid of 2/3: 0.9 ↦ 2/3, −1.2 ↦ −4/3, 5 ↦ 2, −2 ↦ −2 (on the edge)."""
    x, ones = np.array([0.9, -1.2, 5.0, -2.0, -7.0]), np.ones(5)
    expected = reference.threshold(x, 2.0, 3, ones, clip_gradient=True)
    np.testing.assert_allclose(expected.output, [2 / 3, -4 / 3, 2.0, -2.0, -2.0])
    np.testing.assert_array_equal(expected.input_gradient, [1, 1, 0, 1, 0])
    slopes = [(2 / 3 - 0.9) / 2, (-4 / 3 + 1.2) / 2, 1.0, 0.0, -1.0]
    assert expected.learned_gradient == pytest.approx(sum(slopes))
    assert (reference.threshold(x, 2.0, 3, ones, clip_gradient=False).input_gradient == 1).all()


def test_step_by_hand() -> None:
    """s = 0.5 and 3 bits: −4…3. v/s = 1.2, −4.6, 3.4, −0.4 ↦ codes 1, −4, 3, 0; N·Q_P = 4·3."""
    v, ones = np.array([0.6, -2.3, 1.7, -0.2]), np.ones(4)
    expected = reference.step(v, 0.5, 3, signed=True, gradient=ones, scaled=True)
    np.testing.assert_allclose(expected.output, [0.5, -2.0, 1.5, 0.0])
    np.testing.assert_array_equal(expected.input_gradient, [1, 0, 0, 1])
    assert expected.learned_gradient == pytest.approx((-0.2 - 4 + 3 + 0.4) / 12**0.5)
    np.testing.assert_allclose(reference.step(v, 0.5, 3, False, ones, False).output, [0.5, 0.0, 1.5, 0.0])


def rounded(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


@every_width
def test_closed_forms_are_the_derivatives_of_the_piecewise_functions(bits: int) -> None:
    """torch differentiates the formula, with the identity for the rounding alone."""
    x, gradient = drawn(bits, 200)
    values, alpha = torch.tensor(x, requires_grad=True), torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    codes = reference.largest_code(bits)
    (alpha * rounded((values / alpha).clamp(-1, 1) * codes) / codes).backward(torch.from_numpy(gradient))
    expected = reference.threshold(x, 1.3, bits, gradient, clip_gradient=True)
    assert alpha.grad.item() == pytest.approx(expected.learned_gradient, rel=1e-12)
    np.testing.assert_allclose(values.grad.numpy(), expected.input_gradient, rtol=1e-12)

    for signed in (True, False):
        values, size = torch.tensor(x, requires_grad=True), torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        below, above = reference.step_range(bits, signed)
        (size * rounded((values / size).clamp(-below, above))).backward(torch.from_numpy(gradient))
        expected = reference.step(x, 0.2, bits, signed, gradient, scaled=False)
        assert size.grad.item() == pytest.approx(expected.learned_gradient, rel=1e-12)
        np.testing.assert_allclose(values.grad.numpy(), expected.input_gradient)


# --- the quantizer against it ---------------------------------------------------------------------------------------


@both_types
@pytest.mark.parametrize("clip_gradient", [True, False])
@every_width
def test_threshold(bits: int, clip_gradient: bool, dtype: torch.dtype) -> None:
    """Released KDLSQ: activations stop the gradient beyond α, weights let it pass everywhere."""
    x, gradient = drawn(bits, 12, 16)
    for alpha in (0.6, 1.3, 4.5):  # many beyond, some beyond, none beyond
        quantizer = LSQQuantizer(
            bits=bits, parametrization="clip_threshold", clip_gradient=clip_gradient, gradient_scale="none"
        )
        alpha = float(np.float32(alpha))
        expected = reference.threshold(x, alpha, bits, gradient, clip_gradient)
        compare(run(quantizer, x, gradient, alpha, dtype), expected, dtype)


@both_types
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("signed", [True, False])
@every_width
def test_step(bits: int, signed: bool, scaled: bool, dtype: torch.dtype) -> None:
    """LSQ: −2^(b−1)…2^(b−1)−1, or 0…2^b−1."""
    x, gradient = drawn(bits, 12, 16)
    size = float(np.float32(2.0 / 2 ** (bits - 1)))
    quantizer = LSQQuantizer(
        bits=bits, parametrization="step_size", signed=signed, clip_gradient=True, gradient_scale=SCALES[scaled]
    )
    expected = reference.step(x, size, bits, signed, gradient, scaled)
    compare(run(quantizer, x, gradient, size, dtype), expected, dtype)


@both_types
def test_a_value_on_the_threshold_is_inside(dtype: torch.dtype) -> None:
    """|x| = α, which is where min-max and percentile put α: no clipping yet, so g_x passes and g_α gets nothing."""
    x, gradient = np.array([1.5, -1.5, 0.5, -0.75]), np.array([1.0, 2.0, 4.0, 8.0])
    quantizer = LSQQuantizer(bits=3, parametrization="clip_threshold", clip_gradient=True, gradient_scale="none")
    output, of_input, of_alpha = run(quantizer, x, gradient, 1.5, dtype)
    torch.testing.assert_close(of_input, torch.tensor(gradient, dtype=dtype))
    # 0.5 is on the grid as well; −0.75 = −1.5·(1.5 codes)/3 rounds to the even code −2, so x̂ = −1
    assert output.tolist() == pytest.approx([1.5, -1.5, 0.5, -1.0])
    assert of_alpha.item() == pytest.approx(8 * (-1.0 + 0.75) / 1.5)


@both_types
@every_width
@given(seed=st.integers(0, 999))
def test_the_value_that_sets_the_threshold_is_inside(bits: int, dtype: torch.dtype, seed: int) -> None:
    """Whatever its digits: after min-max calibration nothing lies beyond α, so every gradient passes."""
    values = torch.tensor(drawn(seed, 30)[0], dtype=dtype, requires_grad=True)
    quantizer = LSQQuantizer(
        bits=bits, parametrization="clip_threshold", clip_gradient=True, gradient_scale="none", initialization="minmax"
    ).to(dtype)
    quantizer.calibrate(values.detach())
    quantizer(values).sum().backward()
    assert (values.grad == 1).all()


@pytest.mark.parametrize(("granularity", "group_size"), [("per_channel", None), ("per_group", 4)])
@pytest.mark.parametrize("parametrization", ["clip_threshold", "step_size"])
def test_one_parameter_for_each_row_or_group(parametrization: str, granularity: str, group_size: int | None) -> None:
    x, gradient = drawn(5, 6, 8)
    runs = x.reshape(-1, group_size or 8), gradient.reshape(-1, group_size or 8)
    learned = np.linspace(0.4, 1.6, len(runs[0])) / (1 if parametrization == "clip_threshold" else 4)
    quantizer = LSQQuantizer(
        bits=4,
        granularity=granularity,
        group_size=group_size,
        parametrization=parametrization,
        clip_gradient=True,
        gradient_scale="none",
    )
    output, of_input, of_learned = run(quantizer, x, gradient, learned, torch.float64)
    for index, value in enumerate(learned):
        own, incoming = runs[0][index], runs[1][index]
        if parametrization == "clip_threshold":
            expected = reference.threshold(own, value, 4, incoming, clip_gradient=True)
        else:
            expected = reference.step(own, value, 4, signed=True, gradient=incoming, scaled=False)
        np.testing.assert_allclose(output.reshape(runs[0].shape)[index], expected.output, atol=1e-12)
        np.testing.assert_array_equal(of_input.reshape(runs[0].shape)[index], expected.input_gradient)
        assert of_learned[index].item() == pytest.approx(expected.learned_gradient, rel=1e-9)


@pytest.mark.parametrize(
    ("scale", "granularity", "elements"), [("elements", "per_channel", 8), ("features", "per_tensor", 8)]
)
def test_what_the_gradient_scale_counts(scale: str, granularity: str, elements: int) -> None:
    """N of 1/√(N·Q_P): the elements that share a step, or, for an activation, those of one sample (of 6 with 8 features)."""
    x, gradient = drawn(5, 6, 8)
    arguments = {"bits": 4, "granularity": granularity, "parametrization": "step_size", "clip_gradient": True}
    scaled, plain = (
        run(
            LSQQuantizer(**arguments, gradient_scale=way),
            x,
            gradient,
            np.full(6 if granularity == "per_channel" else 1, 0.3),
            torch.float64,
        )[2]
        for way in (scale, "none")
    )
    torch.testing.assert_close(scaled, plain / (elements * 7) ** 0.5, rtol=1e-9, atol=1e-9)


@every_width
@given(seed=st.integers(0, 999), alpha=st.floats(0.05, 8.0))
def test_values_lie_on_the_grid(bits: int, seed: int, alpha: float) -> None:
    """Acceptance C1: k·α/(2^(b−1)−1) with |k| ≤ 2^(b−1)−1; two bits are ternary."""
    x, _ = drawn(seed, 5, 7)
    values = torch.from_numpy(x)
    quantizer = with_learned(LSQQuantizer(bits=bits, parametrization="clip_threshold"), values, alpha)
    codes = quantizer(values).detach() / alpha * reference.largest_code(bits)
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-9)
    assert codes.abs().max() <= reference.largest_code(bits) + 1e-9
    again = quantizer(quantizer(values)).detach()
    torch.testing.assert_close(again, quantizer(values).detach(), rtol=1e-12, atol=1e-12)


def test_two_forms_are_one_function_where_their_ranges_agree() -> None:
    """α = s·Q, by the chain rule g_s = Q·g_α; values never reach the step's additional lowest code."""
    x, gradient = drawn(3, 40)
    alpha, codes = 4.9, reference.largest_code(4)
    assert np.abs(x).max() < alpha
    threshold = LSQQuantizer(bits=4, parametrization="clip_threshold", clip_gradient=True, gradient_scale="none")
    step = LSQQuantizer(bits=4, parametrization="step_size", signed=True, clip_gradient=True, gradient_scale="none")
    first = run(threshold, x, gradient, alpha, torch.float64)
    second = run(step, x, gradient, alpha / codes, torch.float64)
    torch.testing.assert_close(first[0], second[0])
    torch.testing.assert_close(first[2] * codes, second[2])
