"""Layers and attention under onnxruntime: the numbers of the layers that were trained, in whole numbers where that can be.

One graph holds all layers and another all attention, as making a graph is what takes the time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from qat_lightning.exporters.onnx.layers import FloatLinear, IntegerLinear, replace_layers
from qat_lightning.quantization.modules.attention import InstrumentedAttention
from qat_lightning.quantization.modules.layers import QuantEmbedding, QuantLinear
from qat_lightning.quantization.quantizers.affine import AffineQuantizer
from qat_lightning.quantization.quantizers.base import Quantizer
from qat_lightning.quantization.quantizers.binary import BinaryQuantizer
from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer
from tests.exporters.onnx.graphs import Graph

Make = Callable[[], nn.Module] | None
INPUTS, OUTPUTS = 20, 13
LINEAR: dict[str, tuple[Make, Make, bool]] = {
    "ternary": (TernaryQuantizer, UniformQuantizer, True),
    "ternary by row, static inputs": (
        partial(TernaryQuantizer, granularity="per_channel"),
        partial(UniformQuantizer, scale="static"),
        True,
    ),
    "binary by row": (BinaryQuantizer, partial(UniformQuantizer, bits=4), True),
    "8 bits by row": (partial(UniformQuantizer, granularity="per_channel"), UniformQuantizer, True),
    "step 8 bits": (
        partial(LSQQuantizer, parametrization="step_size"),
        partial(LSQQuantizer, parametrization="step_size"),
        True,
    ),
    "threshold 3 bits": (
        partial(LSQQuantizer, bits=3),
        partial(LSQQuantizer, parametrization="step_size", signed=False),
        True,
    ),
    "ternary by group": (partial(TernaryQuantizer, granularity="per_group", group_size=5), UniformQuantizer, False),
    "ternary, inputs by row": (TernaryQuantizer, partial(UniformQuantizer, granularity="per_channel"), False),
    "ternary, asymmetric inputs": (TernaryQuantizer, AffineQuantizer, False),
    "weights alone": (partial(AffineQuantizer, bits=4, granularity="per_channel"), None, False),
    "inputs alone": (None, UniformQuantizer, False),
}
"""Quantizers of weight and input, and whether their product is of whole numbers."""
EMBEDDING: dict[str, Make] = {
    "ternary by row": partial(TernaryQuantizer, granularity="per_channel"),
    "affine 4 bits by row": partial(AffineQuantizer, bits=4, granularity="per_channel"),
    "threshold 3 bits": partial(LSQQuantizer, bits=3),
    "binary by group": partial(BinaryQuantizer, granularity="per_group", group_size=4),
}
ATTENTION: dict[str, tuple[Make, int]] = {
    "8 bits": (UniformQuantizer, 2),
    "static": (partial(UniformQuantizer, scale="static"), 2),
    "step_size": (partial(LSQQuantizer, parametrization="step_size"), 2),
    "by row": (partial(UniformQuantizer, granularity="per_channel"), 0),
    "by group": (partial(UniformQuantizer, granularity="per_group", group_size=2), 0),
    "asymmetric": (AffineQuantizer, 0),
    "nothing": (None, 0),
}
"""Quantizers of query, key and value (of probabilities too, where their number need not be even), products of whole numbers."""


def _made(make: Make, shown: Tensor) -> nn.Module:
    quantizer = nn.Identity() if make is None else make()
    if isinstance(quantizer, Quantizer):
        quantizer.calibrate(shown)
    return quantizer


class _Layers(nn.Module):
    """(x (…, INPUTS), ids) → the output of each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.ModuleList(_linear(*quantizers[:2]) for quantizers in LINEAR.values())
        self.embedding = nn.ModuleList(_embedding(make) for make in EMBEDDING.values())

    def forward(self, x: Tensor, ids: Tensor) -> list[Tensor]:
        return [layer(x) for layer in self.linear] + [layer(ids) for layer in self.embedding]


class _Attention(nn.Module):
    """(query, key, value, mask) → context and probabilities of each core."""

    def __init__(self) -> None:
        super().__init__()
        self.cores = nn.ModuleList(_core(make) for make, _ in ATTENTION.values())

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> list[Tensor]:
        return [output for core in self.cores for output in core(query, key, value, mask, 0.4, 0.0)]


def _linear(weight: Make, inputs: Make) -> QuantLinear:
    layer = nn.Linear(INPUTS, OUTPUTS, bias=weight is not BinaryQuantizer)
    layer.weight.data.normal_(0, 0.3)
    return QuantLinear(layer, _made(weight, layer.weight), _made(inputs, torch.randn(4, 7, INPUTS)))


def _embedding(make: Make) -> QuantEmbedding:
    table = nn.Embedding(9, 12)
    return QuantEmbedding(table, _made(make, table.weight))


def _core(make: Make) -> InstrumentedAttention:
    core = InstrumentedAttention()
    for slot in InstrumentedAttention.QUANTIZED:
        if slot == "probs" and make is not None and getattr(make(), "group_size", None):
            continue  # a length that no group size divides
        shown = torch.rand(2, 3, 5, 8) if slot == "probs" else torch.randn(2, 3, 5, 8)
        setattr(core, f"{slot}_quantizer", _made(make, shown))
    return core


def _attended(seed: int, queries: int, keys: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(2, 3, size, 8, generator=draw) for size in (queries, keys, keys))
    mask = torch.zeros(2, 1, queries, keys)
    mask[1, :, :, -2:] = torch.finfo(torch.float32).min
    return [query, key, value, mask]


@pytest.fixture(scope="module")
def layers() -> tuple[_Layers, Graph]:
    torch.manual_seed(0)
    trained = _Layers().eval()
    exported = replace_layers(copy.deepcopy(trained))
    return trained, Graph(exported, torch.randn(2, 3, INPUTS), torch.arange(6).reshape(2, 3), free=([0, 1],) * 2)


@pytest.fixture(scope="module")
def attention() -> tuple[_Attention, Graph]:
    torch.manual_seed(0)
    trained = _Attention().eval()
    free = ([2], [2], [2], [2, 3])
    return trained, Graph(replace_layers(copy.deepcopy(trained)), *_attended(0, 5, 6), free=free)


@torch.no_grad()
def test_layers_compute_what_they_did_in_training(layers: tuple[_Layers, Graph]) -> None:
    trained, graph = layers
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        x, ids = 1.5 * torch.randn(5, 4, INPUTS, generator=draw), torch.randint(9, (5, 4), generator=draw)
        # in float64 the sums are exact to more digits than float32 shows
        expected, got = copy.deepcopy(trained).double()(x.double(), ids), graph(x, ids)
        for name, wide, output in zip([*LINEAR, *EMBEDDING], expected, got, strict=True):
            torch.testing.assert_close(
                output, wide.float(), rtol=2e-6, atol=4e-6, msg=lambda m, name=name: f"{name}: {m}"
            )


@torch.no_grad()
def test_embedding_rows_are_the_tables_to_the_last_bit(layers: tuple[_Layers, Graph]) -> None:
    trained, graph = layers
    ids = torch.tensor([[0, 8, 3], [3, 3, 1]])
    got = graph(torch.zeros(2, 3, INPUTS), ids)[len(LINEAR) :]
    for layer, rows in zip(trained.embedding, got, strict=True):
        assert torch.equal(rows, layer.weight_quantizer(layer.weight)[ids])


@pytest.mark.parametrize("name", LINEAR)
def test_which_products_are_of_whole_numbers(name: str) -> None:
    weight, inputs, whole = LINEAR[name]
    (layer,) = replace_layers(nn.Sequential(_linear(weight, inputs)))
    assert isinstance(layer, IntegerLinear if whole else FloatLinear)


@torch.no_grad()
def test_attention_computes_what_it_did_in_training(attention: tuple[_Attention, Graph]) -> None:
    trained, graph = attention
    for seed, (queries, keys) in enumerate([(5, 5), (7, 4), (3, 8)]):
        given = _attended(seed, queries, keys)
        expected, got = trained(*given), graph(*given)
        names = [f"{name}, {kind}" for name in ATTENTION for kind in ("context", "probabilities")]
        for name, output, same in zip(names, got, expected, strict=True):
            torch.testing.assert_close(output, same, rtol=1e-5, atol=5e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_which_attention_products_are_of_whole_numbers(attention: tuple[_Attention, Graph]) -> None:
    assert attention[1].count("MatMulInteger") == sum(count for _, count in ATTENTION.values())


@pytest.mark.parametrize("slot", ["weight_quantizer", "input_quantizer"])
def test_a_disabled_quantizer_stays_disabled(slot: str) -> None:
    layer = QuantLinear(nn.Linear(6, 4), TernaryQuantizer(), AffineQuantizer())
    getattr(layer, slot).enabled = False
    x = torch.randn(5, 6)
    torch.testing.assert_close(replace_layers(nn.Sequential(copy.deepcopy(layer)))(x), layer(x))


def test_any_module_as_a_quantizer_is_kept() -> None:
    layer = QuantLinear(nn.Linear(6, 4), nn.Hardtanh(-0.1, 0.1), nn.Hardtanh())
    table = QuantEmbedding(nn.Embedding(5, 4), nn.Hardtanh())
    x, ids = 2 * torch.randn(5, 6), torch.arange(5)
    torch.testing.assert_close(replace_layers(nn.Sequential(copy.deepcopy(layer)))(x), layer(x))
    torch.testing.assert_close(replace_layers(nn.Sequential(copy.deepcopy(table)))(ids), table(ids))
