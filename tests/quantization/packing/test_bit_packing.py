"""Codes ↔ bytes: no loss, the least number of bytes, and every bit at the place that the format defines."""

import math

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat_lightning.quantization.packing.bit_packing import pack, pack_base3, packed_bytes, unpack, unpack_base3

WIDTHS = range(1, 9)
each_width = pytest.mark.parametrize("bits", WIDTHS)


def drawn(count: int, levels: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(levels, (count,), generator=generator, dtype=torch.uint8)


def stream(codes: torch.Tensor, bits: int) -> list[int]:
    """The same by numpy: each code as its bits, lowest first, and all of them as bytes, lowest first."""
    of_each = numpy.unpackbits(codes.numpy()[:, None], axis=1, bitorder="little")[:, :bits]
    return numpy.packbits(of_each, bitorder="little").tolist()


@each_width
@given(count=st.integers(0, 70), seed=st.integers(0, 999))
def test_bits_are_placed_as_numpy_puts_them(bits: int, count: int, seed: int) -> None:
    codes = drawn(count, 2**bits, seed)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == stream(codes, bits)
    assert len(packed) == math.ceil(count * bits / 8)
    assert torch.equal(unpack(packed, bits, count), codes)


@given(count=st.integers(0, 70), seed=st.integers(0, 999))
def test_trits_are_digits_of_base_three(count: int, seed: int) -> None:
    codes = drawn(count, 3, seed)
    digits = [*codes.tolist(), *[0] * (-count % 5)]
    packed = pack_base3(codes)
    assert packed.tolist() == [int("".join(map(str, digits[i : i + 5][::-1])), 3) for i in range(0, len(digits), 5)]
    assert torch.equal(unpack_base3(packed, count), codes)


@given(count=st.integers(400, 10**12), levels=st.integers(2, 256))
def test_bytes_are_those_of_theory(count: int, levels: int) -> None:
    """At most 2 % more than count · log₂(levels) bits where the levels are a power of two, or three as trits."""
    bits = math.ceil(math.log2(levels))
    assert packed_bytes(count, bits) <= count * bits / 8 * 1.02
    assert -(-count // 5) <= count * math.log2(3) / 8 * 1.02


@pytest.mark.parametrize(
    ("codes", "bits", "message"),
    [
        ([0, 4], 2, "codes from 0 to 4 do not fit into 2 bits"),
        ([-1, 1], 2, "codes from -1 to 1 do not fit"),
        ([0, 256], 8, "codes from 0 to 256 do not fit into 8 bits"),
        ([0.0, 1.0], 2, r"torch\.float32 are not whole numbers: round them"),
        ([0], 9, "bits=9: codes have a width of 1 to 8 bits"),
        ([0], 0, "bits=0"),
    ],
)
def test_refuses_codes_that_do_not_fit(codes: list, bits: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(torch.tensor(codes), bits)


def test_refuses_invalid_trits() -> None:
    with pytest.raises(ValueError, match="codes from 0 to 3 do not fit into a base-3 digit"):
        pack_base3(torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="byte 243 among the trits"):
        unpack_base3(torch.tensor([242, 243], dtype=torch.uint8), 10)
    assert unpack_base3(torch.tensor([242], dtype=torch.uint8), 5).tolist() == [2] * 5


@pytest.mark.parametrize("length", [0, 2, 4])
def test_a_stream_of_another_length_is_refused(length: int) -> None:
    packed = torch.zeros(length, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"9 codes, 2 bits each, take 3 bytes, not"):
        unpack(packed, 2, 9)
    with pytest.raises(ValueError, match="11 codes, five in a byte, take 3 bytes"):
        unpack_base3(packed, 11)
    with pytest.raises(ValueError, match=r"torch\.int64"):
        unpack(torch.zeros(3, dtype=torch.int64), 2, 9)
