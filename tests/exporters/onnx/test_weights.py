"""Packed weights are plain torch: what they unpack to is the quantizer's weight, to the last bit."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qat_lightning.exporters.onnx.weights import FloatWeight, IntegerWeight, PackedRows, is_integer
from qat_lightning.quantization.packing.stored_weight import stored
from qat_lightning.quantization.quantizers.affine import AffineQuantizer
from qat_lightning.quantization.quantizers.base import Quantizer
from qat_lightning.quantization.quantizers.binary import BinaryQuantizer
from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer

BY_GROUP = {"granularity": "per_group", "group_size": 3}
INTEGER = {
    "ternary": TernaryQuantizer,
    "ternary by row": partial(TernaryQuantizer, granularity="per_channel"),
    "binary": partial(BinaryQuantizer, granularity="per_tensor"),
    "binary by row": BinaryQuantizer,
    **{f"uniform {bits} bits": partial(UniformQuantizer, bits=bits) for bits in range(2, 9)},
    "uniform 8 bits by row": partial(UniformQuantizer, granularity="per_channel"),
    "uniform 8 bits static": partial(UniformQuantizer, scale="static"),
    **{f"threshold {bits} bits": partial(LSQQuantizer, bits=bits) for bits in range(2, 9)},
    "threshold 8 bits by row": partial(LSQQuantizer, granularity="per_channel"),
    **{f"step {bits} bits": partial(LSQQuantizer, bits=bits, parametrization="step_size") for bits in range(2, 9)},
    "affine 4 bits, symmetric ends": partial(AffineQuantizer, bits=4, range="symmetric"),
    "affine 4 bits, mean ends": partial(AffineQuantizer, bits=4, range="mean"),
    "affine 4 bits, mean ends, by row": partial(AffineQuantizer, bits=4, range="mean", granularity="per_channel"),
}
"""Integer codes, or twice that, within 8 bits, and at most one scale an output."""
OTHER = {
    "ternary by group": partial(TernaryQuantizer, **BY_GROUP),
    "binary by group": partial(BinaryQuantizer, **BY_GROUP),
    "uniform 4 bits by group": partial(UniformQuantizer, bits=4, **BY_GROUP),
    "threshold 3 bits by group": partial(LSQQuantizer, bits=3, **BY_GROUP),
    "affine 4 bits": partial(AffineQuantizer, bits=4),
    "affine 4 bits by row": partial(AffineQuantizer, bits=4, granularity="per_channel"),
    "affine 4 bits by group": partial(AffineQuantizer, bits=4, **BY_GROUP),
    "affine 8 bits": AffineQuantizer,
    "affine 8 bits, mean ends": partial(AffineQuantizer, range="mean"),
}
EVERY = INTEGER | OTHER
SIZES = st.integers(1, 9), st.integers(1, 13)


def _quantized(name: str, rows: int, columns: int, seed: int) -> tuple[Tensor, Quantizer]:
    """A weight and its calibrated quantizer; columns in threes, so that groups of three divide them."""
    quantizer = EVERY[name]()
    if quantizer.granularity == "per_group":
        columns *= 3
    weight = 0.5 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))  # within the clip, mostly
    quantizer.calibrate(weight)
    return weight, quantizer


def _bytes(columns: int, bits: int) -> int:
    """⌈columns · width / 8⌉, by the widths that divide a byte."""
    width = 1 if bits == 1 else 2 if bits == 2 else 4 if bits <= 4 else 8
    return -(-columns * width // 8)


def test_codes_lie_lowest_first_in_a_byte() -> None:
    values = torch.tensor([10.0, 11.0, 12.0, 13.0])
    rows = PackedRows(torch.tensor([[1, 2, 3, 0, 3], [0, 0, 0, 1, 2]], dtype=torch.uint8), 2, values)
    # 1 + 2·4 + 3·16 = 57, 3; 1·64, 2
    assert rows.packed.tolist() == [[57, 3], [64, 2]]
    assert rows().tolist() == [[11, 12, 13, 10, 13], [10, 10, 10, 11, 12]]
    assert rows(torch.tensor([1, 1])).tolist() == [[10, 10, 10, 11, 12]] * 2


@given(st.sampled_from(sorted(EVERY)), *SIZES, st.integers(0, 10_000))
def test_float_weight_is_the_quantizers_to_the_last_bit(name: str, rows: int, columns: int, seed: int) -> None:
    weight, quantizer = _quantized(name, rows, columns, seed)
    packed = FloatWeight(stored(weight, quantizer))
    codes, scale, zero_point = quantizer.codes(weight)
    expected = ((codes - zero_point) * scale).reshape(weight.shape)
    assert torch.equal(packed(), expected)
    assert packed().dtype == torch.float32
    chosen = torch.randint(rows, (2, 3), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(packed(chosen), expected[chosen])
    assert packed.rows.packed.shape == (rows, _bytes(weight.shape[1], quantizer.bits))


@given(st.sampled_from(sorted(INTEGER)), *SIZES, st.integers(0, 10_000))
def test_integer_weight_times_its_scale_is_the_quantizers(name: str, rows: int, columns: int, seed: int) -> None:
    weight, quantizer = _quantized(name, rows, columns, seed)
    packed = IntegerWeight(stored(weight, quantizer))
    values = packed().int() - packed.zero.int()
    assert packed().shape == (columns, rows)
    assert packed.scale.shape in {(), (rows,)}
    assert torch.equal(values * packed.scale, quantizer(weight).t())
    assert packed.rows.packed.shape == (columns, _bytes(rows, quantizer.bits))
    # int8 only where two products with uint8 fit into 16 bits: 2 · 255 · 64 < 2^15
    largest = int(values.abs().max())
    assert (packed().dtype, int(packed.zero)) == ((torch.int8, 0) if largest <= 64 else (torch.uint8, 128))


@pytest.mark.parametrize("name", OTHER)
def test_other_weights_are_not(name: str) -> None:
    assert not is_integer(stored(*_quantized(name, 8, 15, 0)))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_weight_of_one_sign_reaches_the_end_of_8_bits(sign: int) -> None:
    """Its codes are 0 … 127 or −127 … 0; what the other half of a byte would stand for does not matter."""
    weight = sign * torch.linspace(0, 1.27, 128).reshape(2, 64)
    packed = IntegerWeight(stored(weight, UniformQuantizer()))
    assert torch.equal(packed().int() - packed.zero.int(), sign * torch.arange(128).reshape(2, 64).t())
