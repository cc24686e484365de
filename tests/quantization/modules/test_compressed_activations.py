"""What a quantized layer leaves behind for its backward pass, counted in bytes, and that nothing changes by it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from qat_lightning.commands.bench.measures import saved_bytes
from qat_lightning.quantization.modules import layers
from qat_lightning.quantization.modules.layers import QuantLinear
from qat_lightning.quantization.quantizers.base import Quantizer
from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer
from tests.quantization.quantizers.cases import QUANTIZERS

CPU = torch.device("cpu")
ROWS, INPUTS, OUTPUTS = 256, 192, 320
LEARNED = ["lsq 2 and 8 bits"]
PAIRS = {
    "ternary and 8 bits": (TernaryQuantizer, UniformQuantizer),
    LEARNED[0]: (lambda: LSQQuantizer(2), LSQQuantizer),
}

each_pair = pytest.mark.parametrize("pair", PAIRS)


def layer_of(pair: str) -> QuantLinear:
    torch.manual_seed(0)
    weight, inputs = PAIRS[pair]
    layer = QuantLinear(nn.Linear(INPUTS, OUTPUTS), weight(), inputs())
    layer.weight_quantizer.calibrate(layer.weight)
    layer.input_quantizer.calibrate(source())
    return layer


def source() -> Tensor:
    return 2 * torch.randn(ROWS, INPUTS, generator=torch.Generator().manual_seed(1))


def saved_by(call: Callable[[Tensor], Tensor]) -> int:
    """Bytes beyond the result's; the layer's input is made within, as by the layer before it."""
    leaf = source().requires_grad_()

    def forward() -> Tensor:
        result = call(leaf * 1.0)
        UniformQuantizer()(torch.ones(1))  # as in the layer after it, whose input is the latest to be shared
        return result

    return saved_bytes(forward, CPU) - 4 * ROWS * OUTPUTS


def naive_ternary(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Clamp, then value + (grid − value).detach(), by torch's own operators."""
    x, weight = x.clamp(-2.5, 2.5), weight.clamp(-2.5, 2.5)
    scale = 127 / x.detach().abs().max()
    x = x + ((x * scale).round() / scale - x).detach()
    kept = weight.abs() > 0.7 * weight.abs().mean()
    alpha = weight.abs()[kept].mean()
    return functional.linear(x, weight + (alpha * weight.sign() * kept - weight).detach(), bias)


def naive_learned(x: Tensor, layer: QuantLinear) -> Tensor:
    def quantized(x: Tensor, quantizer: LSQQuantizer) -> Tensor:
        codes = (x / quantizer.step_size * quantizer.high).clamp(-quantizer.high, quantizer.high)
        return (codes + (codes.round() - codes).detach()) / quantizer.high * quantizer.step_size

    weight = quantized(layer.weight, layer.weight_quantizer)
    return functional.linear(quantized(x, layer.input_quantizer), weight, layer.bias)


@each_pair
def test_a_linear_layer_saves_at_most_35_percent_of_the_naive_form(pair: str) -> None:
    """Ternary, by hand: naive, both of x and x̂ in 4 bytes and ŵ in 4; here x̂ in one and its clamp mask in one, ŵ in one."""
    layer = layer_of(pair)
    if pair in LEARNED:
        naive = saved_by(lambda x: naive_learned(x, layer))
    else:
        naive = saved_by(lambda x: naive_ternary(x, layer.weight, layer.bias))
        assert saved_by(layer) == pytest.approx(2 * ROWS * INPUTS + INPUTS * OUTPUTS, rel=0.02)
        assert naive >= 8 * ROWS * INPUTS + 4 * INPUTS * OUTPUTS
    assert saved_by(layer) <= 0.35 * naive


@pytest.mark.parametrize("precision", ["32", "bf16", "64"])
@each_pair
def test_gradients_equal_those_of_floats(pair: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, upstream = layer_of(pair), torch.randn(ROWS, OUTPUTS)
    if precision == "64":
        layer, upstream = layer.double(), upstream.double()

    def gradients() -> list[Tensor]:
        x = source().to(upstream.dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            result = layer(x)
        return [result, *torch.autograd.grad(result, [x, *layer.parameters()], upstream.to(result.dtype))]

    own = gradients()
    monkeypatch.setattr(layers, "saved_as_codes", lambda *tensors: nullcontext())
    monkeypatch.setattr(layers, "as_autocast", lambda x: x)
    assert all(torch.equal(*both) for both in zip(own, gradients(), strict=True))


def test_autocast_saves_codes_too() -> None:
    layer = layer_of("ternary and 8 bits")

    def call(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x).float()

    assert saved_by(call) <= 1.05 * (2 * ROWS * INPUTS + INPUTS * OUTPUTS)


def test_three_layers_of_one_input_quantize_and_save_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizers = [UniformQuantizer() for _ in range(3)]
    three = [QuantLinear(nn.Linear(INPUTS, 8), TernaryQuantizer(), quantizer) for quantizer in quantizers]
    seen = []
    original = UniformQuantizer.codes
    monkeypatch.setattr(UniformQuantizer, "codes", lambda self, x: seen.append(x.shape) or original(self, x))
    leaf = source().requires_grad_()
    x = leaf * 1.0
    together = [layer(x) for layer in three]
    assert seen == [(ROWS, INPUTS)]
    alone = [layer(leaf * 1.0) for layer in three]
    assert len(seen) == 4
    gradients = [torch.autograd.grad(sum(made).sum(), leaf) for made in (together, alone)]  # type: ignore[arg-type]
    torch.testing.assert_close(*gradients)
    assert all(torch.equal(*both) for both in zip(together, alone, strict=True))


def test_a_changed_input_is_quantized_again() -> None:
    quantizer, x = UniformQuantizer(), source()
    before = quantizer(x)
    x.mul_(0.5)
    assert not torch.equal(quantizer(x), before)
    other = UniformQuantizer(bits=4)(x)
    assert torch.equal(other, UniformQuantizer(bits=4)(x.clone()))
    with torch.no_grad():
        assert not quantizer(x.requires_grad_()).requires_grad
    assert quantizer(x).requires_grad


def test_a_second_derivative_goes_through_what_was_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of("ternary and 8 bits").double()

    def twice() -> tuple[Tensor, ...]:
        x = source().double().requires_grad_()
        (first,) = torch.autograd.grad(layer(x).square().sum(), layer.weight, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [layer.weight, x])

    own = twice()
    monkeypatch.setattr(layers, "saved_as_codes", lambda *tensors: nullcontext())
    assert all(gradient.abs().sum() > 0 for gradient in own)
    assert all(torch.equal(*both) for both in zip(own, twice(), strict=True))


@pytest.mark.parametrize("name", QUANTIZERS)
@given(
    rows=st.integers(1, 4),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_codes_restore_the_quantized_tensor(name: str, rows: int, seed: int, dtype: torch.dtype) -> None:
    x = (3 * torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))).to(dtype)
    quantizer = QUANTIZERS[name]()
    assert not hasattr(quantizer(x.requires_grad_()), "codes")
    quantizer.keep_codes = True
    quantized = quantizer(x)
    assert torch.equal(quantized.codes.restored(), quantized)  # type: ignore[attr-defined]
    assert quantized.codes.values.element_size() == 1  # type: ignore[attr-defined]
    with torch.no_grad():
        assert not hasattr(quantizer(x), "codes")


class UserQuantizer(Quantizer):
    """The least that the contract asks for: codes above a byte, a zero point, a private attribute."""

    def __init__(self, step: float) -> None:
        super().__init__(8)
        self._step = step

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes = (self.prepared(x) / self._step).round() + 300
        return codes, torch.tensor(self._step), torch.tensor(300.0)


def test_a_user_quantizer_is_neither_shared_nor_saved_in_bytes() -> None:
    x = source().requires_grad_() * 1.0
    coarse, fine = (QuantLinear(nn.Linear(INPUTS, 8), None, UserQuantizer(step)) for step in (1.0, 0.25))
    assert not torch.equal(coarse.input_quantizer(x), fine.input_quantizer(x))
    fine(x).sum().backward()
    expected = ((source().clamp(-2.5, 2.5) / 0.25).round() * 0.25).sum(0).expand(8, INPUTS)
    torch.testing.assert_close(fine.weight.grad, expected)


def test_a_leaf_tensor_is_not_shared() -> None:
    """numpy may write to the tensor, or the user may ask for its gradient later."""
    layer, x = layer_of("ternary and 8 bits"), source()
    layer(x)
    layer(x.requires_grad_()).sum().backward()
    assert x.grad is not None
    for _ in range(2):
        layer(x).sum().backward()
    numbers = source().numpy()
    with torch.no_grad():
        before = layer(torch.from_numpy(numbers))
        numbers *= 0.5
        assert not torch.equal(layer(torch.from_numpy(numbers)), before)
    written = source().requires_grad_() * 1.0
    layer.input_quantizer(written).data.zero_()
    quantized = layer.input_quantizer(written)
    with torch.no_grad():
        quantized.zero_()
    assert layer.input_quantizer(written).abs().sum() > 0


def test_a_quantized_tensor_that_was_changed_in_place_is_saved_as_it_is() -> None:
    layer = layer_of("ternary and 8 bits")
    layer.input_quantizer.register_forward_hook(lambda module, inputs, output: output.detach().mul_(0) * 1.0)
    layer(source().requires_grad_()).sum().backward()
    assert not layer.weight.grad.any()
    layer.input_quantizer._forward_hooks.clear()
    layer.input_quantizer.register_forward_hook(lambda module, inputs, output: output.detach().mul_(0) and None)


def test_functional_transformations_go_through() -> None:
    layer, x = layer_of("ternary and 8 bits"), source()
    expected = source().requires_grad_()
    layer(expected).sum().backward()
    own = torch.func.grad(lambda given: layer(given).sum())(x)
    torch.testing.assert_close(own, expected.grad)
    rows = torch.func.vmap(layer)(x[:, None])
    torch.testing.assert_close(rows, torch.stack([layer(row[None]) for row in x]))
