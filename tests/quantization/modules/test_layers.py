"""Linear and embedding layers with quantizers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from qat_lightning.quantization.modules.layers import QuantEmbedding, QuantLinear
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer


def linear(weight: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


def test_linear_by_hand() -> None:
    # mean|w| = 0.45, Δ = 0.315, α = 0.7 → [0.7, 0, 0, −0.7]; input: m = 1.27, s = 100 → [1.27, −0.63, 0, 0.02]
    layer = QuantLinear(linear([[0.5, -0.3, 0.1, -0.9]], [0.1]), TernaryQuantizer(), UniformQuantizer())
    output = layer(torch.tensor([1.27, -0.634, 0.004, 0.016]))
    torch.testing.assert_close(output, torch.tensor([0.7 * 1.27 - 0.7 * 0.02 + 0.1]))


def test_linear_gradients_by_hand() -> None:
    # ∂y/∂w = Q(x) and ∂y/∂x = Q(w), each only inside the clip of 2.5; the bias is not quantized
    layer = QuantLinear(linear([[0.5, -0.3, 0.1, -3.0]], [0.1]), TernaryQuantizer(), UniformQuantizer())
    x = torch.tensor([2.5, -1.25, 0.5, 1.0], requires_grad=True)
    layer(x).sum().backward()
    # m = 2.5, s = 50.8; clamped |w| = 0.5, 0.3, 0.1, 2.5: mean 0.85, Δ = 0.595, α = 2.5
    codes = torch.tensor([127.0, -64.0, 25.0, 0.0])
    torch.testing.assert_close(layer.weight.grad, (codes / 50.8)[None] * torch.tensor([[1.0, 1.0, 1.0, 0.0]]))
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 0.0, 0.0, -2.5]))
    assert torch.equal(layer.bias.grad, torch.ones(1))


def test_either_quantizer_may_be_absent() -> None:
    plain, x = linear([[0.5, -0.3], [1.0, 0.2]]), torch.tensor([[1.0, 0.3]])
    ternary, eight_bit = TernaryQuantizer(), UniformQuantizer(bits=2)
    assert torch.equal(QuantLinear(plain)(x), plain(x))
    assert torch.equal(QuantLinear(plain, ternary)(x), functional.linear(x, ternary(plain.weight)))
    assert torch.equal(QuantLinear(plain, None, eight_bit)(x), functional.linear(eight_bit(x), plain.weight))


@pytest.mark.parametrize("bias", [True, False])
def test_linear_shares_the_parameters(bias: bool) -> None:
    plain = nn.Linear(3, 2, bias=bias)
    layer = QuantLinear(plain, TernaryQuantizer(), UniformQuantizer())
    assert layer.weight is plain.weight
    assert layer.bias is plain.bias
    assert list(layer.state_dict()) == list(plain.state_dict())
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features) == (3, 2)


def test_embedding_shares_the_parameters() -> None:
    plain = nn.Embedding(5, 3, padding_idx=1)
    layer = QuantEmbedding(plain, TernaryQuantizer("per_channel"))
    assert layer.weight is plain.weight
    assert layer.padding_idx == 1
    assert list(layer.state_dict()) == ["weight"]
    assert isinstance(layer, nn.Embedding)


def embedding_and_lookup_after(quantizer: nn.Module, ids: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Value and gradient: of the layer, and of quantizing the whole table and then looking up."""
    torch.manual_seed(3)
    plain = nn.Embedding(12, 6, padding_idx=1)
    with torch.no_grad():
        plain.weight.mul_(2)  # so that some weights lie beyond the clip
        plain.weight[4] = 0
    upstream = torch.randn(*ids.shape, 6)
    results = []
    for table in (
        lambda: QuantEmbedding(plain, quantizer)(ids),
        lambda: functional.embedding(ids, quantizer(plain.weight), padding_idx=1),
    ):
        plain.weight.grad = None
        value = table()
        value.backward(upstream)
        results.append([value.detach(), plain.weight.grad])
    return results[0], results[1]


@given(ids=st.lists(st.integers(0, 11), min_size=1, max_size=12))
@pytest.mark.parametrize(
    "make",
    [
        partial(TernaryQuantizer, "per_channel"),
        partial(UniformQuantizer, 8, "per_channel"),
        TernaryQuantizer,
        UniformQuantizer,
    ],
    ids=["ternary by row", "uniform by row", "ternary", "uniform"],
)
def test_embedding_equals_quantizing_the_whole_table_first(make: partial[nn.Module], ids: list[int]) -> None:
    ours, expected = embedding_and_lookup_after(make(), torch.tensor(ids)[None])
    assert torch.equal(ours[0], expected[0])
    torch.testing.assert_close(ours[1], expected[1])


def test_embedding_by_row_quantizes_only_the_rows_of_the_batch() -> None:
    """Of BERT's 30,522 rows a batch needs a few hundred."""
    quantizer, seen = TernaryQuantizer("per_channel"), []
    quantizer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    QuantEmbedding(nn.Embedding(1000, 4), quantizer)(torch.tensor([[1, 2, 3]]))
    assert seen == [torch.Size([1, 3, 4])]


def test_embedding_by_hand() -> None:
    plain = nn.Embedding(2, 4)
    with torch.no_grad():
        plain.weight.copy_(torch.tensor([[0.5, -0.3, 0.1, -0.9], [1.0, -1.0, 0.0, 0.0]]))
    rows = QuantEmbedding(plain, TernaryQuantizer("per_channel"))(torch.tensor([1, 0]))
    torch.testing.assert_close(rows, torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.7, 0.0, 0.0, -0.7]]))
