"""A stored weight gives back exactly the numbers of its quantizer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D

from qat_lightning.models.packed_state import packed_tensors
from qat_lightning.models.size import size
from qat_lightning.quantization.modules.layers import QuantConv1D, QuantLinear
from qat_lightning.quantization.packing.stored_weight import DivergedError, dequantized, stored, transposed
from qat_lightning.quantization.quantizers.affine import AffineQuantizer
from qat_lightning.quantization.quantizers.base import Quantizer
from qat_lightning.quantization.quantizers.binary import BinaryQuantizer
from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer
from tests.quantization.quantizers.cases import GRANULARITIES, KINDS

every_quantizer = pytest.mark.parametrize("name", KINDS)
every_granularity = pytest.mark.parametrize("granularity", GRANULARITIES)


def made(name: str, granularity: str, weight: torch.Tensor) -> Quantizer:
    quantizer = KINDS[name](**GRANULARITIES[granularity])
    quantizer.calibrate(weight)
    return quantizer


def weights(seed: int, rows: int = 5, shift: float = 0.0) -> torch.Tensor:
    """Of many sizes, with zeros, with rows that are one number, and beyond the clip."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 12, generator=generator) * 10 ** torch.empty(rows, 1).uniform_(
        -3, 1, generator=generator
    )
    weight[torch.rand(rows, 12, generator=generator) < 0.1] = 0.0
    weight[0] = 0.25
    return weight + shift


@every_quantizer
@every_granularity
@given(seed=st.integers(0, 9999), shift=st.sampled_from([0.0, 1.0, -30.0]))
def test_stored_gives_back_what_the_quantizer_gave(name: str, granularity: str, seed: int, shift: float) -> None:
    weight = weights(seed, shift=shift)
    quantizer = made(name, granularity, weight)
    parts = stored(weight, quantizer)
    assert (parts.codes.dtype, parts.scale.dtype, parts.bits) == (torch.uint8, torch.float32, quantizer.bits)
    assert int(parts.codes.max()) < 2**quantizer.bits
    assert parts.codes.shape == (torch.Size([5, 3, 4]) if granularity == "per_group" else weight.shape)
    assert torch.equal(dequantized(parts.codes, parts.scale, parts.zero_point, weight.shape), quantizer(weight))


@every_quantizer
def test_the_other_way_round(name: str) -> None:
    """GPT-2's layers keep their weights transposed, square ones too."""
    for outputs, granularity in ((12, "per_tensor"), (8, "per_channel"), (8, "per_group")):
        conv = Conv1D(outputs, 12)
        quantizer = made(name, granularity, conv.weight.t())
        layer = QuantConv1D(conv, quantizer)
        parts = stored(layer.quantized_weight, quantizer)
        expected = quantizer(conv.weight.t())
        assert torch.equal(dequantized(parts.codes, parts.scale, parts.zero_point, (outputs, 12)), expected)
        assert transposed(layer)
    assert not transposed(QuantLinear(torch.nn.Linear(12, 12), TernaryQuantizer()))


def test_ternary_by_hand() -> None:
    # mean|w| = 1, Δ = 0.7; α = (1 + 2 + 0.8)/3
    parts = stored(torch.tensor([[1.0, -2.0], [0.2, 0.8]]), TernaryQuantizer())
    assert parts.codes.tolist() == [[2, 0], [1, 2]]
    assert parts.zero_point == 1.0
    assert parts.scale.item() == pytest.approx(3.8 / 3)


def test_offsets_that_differ_are_a_tensor() -> None:
    # by row, low … high in 3 steps: 0 … 3 by 1, low at 0; −1 … 2 by 1, low at −1
    parts = stored(torch.tensor([[0.0, 3.0], [-1.0, 2.0]]), AffineQuantizer(2, "per_channel", None))
    assert torch.equal(parts.zero_point, torch.tensor([[0.0], [1.0]]))
    assert parts.codes.tolist() == [[0, 3], [0, 3]]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [name for name in KINDS if not name.startswith("learned")])
def test_a_weight_that_is_not_finite_is_refused(name: str, wrong: float) -> None:
    weight = weights(0)
    weight[1, 1] = wrong
    quantizer = KINDS[name](granularity="per_tensor", clip=None)  # a clip would make it finite
    with pytest.raises(DivergedError, match="the quantized weight is not finite"):
        stored(weight, quantizer)


def test_a_learned_threshold_cuts_the_infinite_off_but_knows_no_nan() -> None:
    weight, quantizer = torch.tensor([[1.0, float("inf")], [-float("inf"), 0.0]]), LSQQuantizer(2)
    parts = stored(weight, quantizer)
    assert torch.equal(dequantized(parts.codes, parts.scale, parts.zero_point, (2, 2)), quantizer(weight))
    with pytest.raises(DivergedError):
        stored(weight.nan_to_num(0.0, posinf=float("nan")), quantizer)


def layer(quantizer: Quantizer) -> torch.nn.Module:
    holder = torch.nn.Module()
    holder.linear = QuantLinear(torch.nn.Linear(12, 6), quantizer)
    return holder


def test_offsets_count() -> None:
    holder = layer(AffineQuantizer(4, "per_channel"))
    # 72 codes of 4 bits, a scale and a zero point for each of 6 rows, and 6 biases
    assert size(holder).packed == 36 + 4 * (6 + 6 + 6)


def test_a_diverged_model_has_a_size() -> None:
    holder = layer(TernaryQuantizer())
    before = size(holder)
    torch.nn.init.constant_(holder.linear.weight, float("nan"))
    assert size(holder) == before
    with pytest.raises(DivergedError, match=r"linear\.weight: the quantized weight is not finite"):
        packed_tensors(holder)


def test_three_levels_as_trits() -> None:
    packed = packed_tensors(layer(TernaryQuantizer()), ternary_encoding="base3")
    assert packed.tensors["linear.weight.codes"].shape == (15,)  # 72 of them, five a byte
    assert (packed.weights["linear"].packing, packed.weights["linear"].bits) == ("base3", 1.6)
    for quantizer in (BinaryQuantizer(), UniformQuantizer(4)):
        assert packed_tensors(layer(quantizer), ternary_encoding="base3").weights["linear"].packing == "bits"


def test_the_rest_in_half_precision() -> None:
    holder = layer(TernaryQuantizer())
    kinds = {name: tensor.dtype for name, tensor in packed_tensors(holder, unquantized_dtype="float16").tensors.items()}
    expected = {"linear.weight.codes": torch.uint8, "linear.weight.scale": torch.float32, "linear.bias": torch.float16}
    assert kinds == expected
    torch.nn.init.constant_(holder.linear.bias, 70000.0)
    with pytest.raises(ValueError, match=r"linear\.bias.*unquantized_dtype=float32"):
        packed_tensors(holder, unquantized_dtype="float16")


@pytest.mark.parametrize("choice", [{"unquantized_dtype": "bfloat16"}, {"ternary_encoding": "3bit"}])
def test_an_unknown_choice(choice: dict) -> None:
    with pytest.raises(ValueError, match="is unknown: choose"):
        packed_tensors(layer(TernaryQuantizer()), **choice)
