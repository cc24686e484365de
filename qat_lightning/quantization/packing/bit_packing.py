"""Unsigned codes ↔ bytes, as dense as their width allows.

Two layouts, both little-endian: a stream of bits, in which code i of width b takes bits i·b … i·b + b − 1 (bit j of the
stream is bit j mod 8 of byte ⌊j/8⌋), and trits, five base-3 digits a byte, the first digit counting one.
"""

from __future__ import annotations

import torch
from torch import Tensor

TRITS = 5
"""Base-3 digits a byte: 3⁵ = 243 ≤ 256, so 1.6 bits a digit where log₂3 = 1.585 would be the least."""

CHUNK = 2**20
"""Groups of codes in one step, so that their 64-bit words stay in the cache."""


def packed_bytes(count: int, bits: int) -> int:
    """⌈count · bits / 8⌉."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Whole numbers 0 … 2^bits − 1 of any shape → uint8 (⌈count·bits/8⌉,); the last byte is filled up with zeros.

    Raises ValueError for bits outside 1…8, and codes that are not whole numbers or do not fit.
    """
    _check_width(bits)
    flat = _flat(codes, 2**bits - 1, f"{bits} bits")
    if bits == 8:
        return flat.clone()
    group = 8 // bits if 8 % bits == 0 else 8
    packed = [_join(chunk, bits) for chunk in _padded(flat, group).split(CHUNK)]
    return torch.cat(packed)[: packed_bytes(flat.numel(), bits)] if packed else flat.clone()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes of a stream, uint8 (count,).

    Raises ValueError for bits outside 1…8, and a stream that is not as long as `count` codes take.
    """
    _check_width(bits)
    _check_length(packed, count, packed_bytes(count, bits), f"{bits} bits each")
    if bits == 8 or not count:
        return packed.clone()
    if 8 % bits == 0:
        return _look_up(packed, _digits(2**bits, 8 // bits))[:count]
    blocks = torch.nn.functional.pad(packed, (0, -len(packed) % bits)).view(-1, bits)
    return torch.cat([_split(chunk, bits) for chunk in blocks.split(CHUNK)])[:count]


def pack_base3(codes: Tensor) -> Tensor:
    """Whole numbers 0, 1, 2 of any shape → uint8 (⌈count/5⌉,), Σ code_k·3^k; the last byte is filled up with zeros.

    Raises ValueError for codes that are not whole numbers or do not fit.
    """
    flat = _flat(codes, 2, "a base-3 digit")
    columns = _padded(flat, TRITS).unbind(1)
    packed = columns[-1].clone()
    for column in reversed(columns[:-1]):
        packed.mul_(3).add_(column)
    return packed


def unpack_base3(packed: Tensor, count: int) -> Tensor:
    """The first `count` digits, uint8 (count,).

    Raises ValueError for bytes that are not as many as `count` digits take, or above 242, which no five digits give.
    """
    _check_length(packed, count, -(-count // TRITS), "five in a byte")
    if count and int(packed.max()) >= 3**TRITS:
        raise ValueError(f"byte {int(packed.max())} among the trits: five digits of 0, 1, 2 give 242 at most")
    return _look_up(packed, _digits(3, TRITS))[:count]


def _check_width(bits: int) -> None:
    if bits not in range(1, 9):
        raise ValueError(f"bits={bits}: codes have a width of 1 to 8 bits")


def _check_length(packed: Tensor, count: int, expected: int, width: str) -> None:
    if packed.dtype != torch.uint8 or packed.dim() != 1 or len(packed) != expected:
        raise ValueError(f"{count} codes, {width}, take {expected} bytes, not {tuple(packed.shape)} of {packed.dtype}")


def _flat(codes: Tensor, largest: int, width: str) -> Tensor:
    """uint8, one dimension; all are checked to lie in 0 … largest."""
    if codes.is_floating_point() or codes.is_complex():
        raise ValueError(f"codes of {codes.dtype} are not whole numbers: round them and make them torch.uint8")
    if codes.numel():
        low, high = (int(end) for end in codes.aminmax()) if codes.dtype != torch.bool else (0, 1)
        if low < 0 or high > largest:
            raise ValueError(f"codes from {low} to {high} do not fit into {width}: they must lie in 0 to {largest}")
    return codes.detach().to(torch.uint8).reshape(-1)


def _padded(flat: Tensor, group: int) -> Tensor:
    """(groups, group), with zeros after the last."""
    return torch.nn.functional.pad(flat, (0, -len(flat) % group)).view(-1, group)


def _join(groups: Tensor, bits: int) -> Tensor:
    """(groups, 8/bits or 8) codes → their bytes in one dimension."""
    wide = groups if 8 % bits == 0 else groups.long()
    word = wide[:, 0].clone()
    for place in range(1, groups.shape[1]):
        word |= wide[:, place] << place * bits
    if 8 % bits == 0:
        return word
    return torch.stack([word >> 8 * byte & 255 for byte in range(bits)], 1).to(torch.uint8).view(-1)


def _split(blocks: Tensor, bits: int) -> Tensor:
    """(groups, bits) bytes → 8 codes a group, in one dimension."""
    word = blocks[:, 0].long()
    for byte in range(1, bits):
        word |= blocks[:, byte].long() << 8 * byte
    codes = torch.empty(len(blocks), 8, dtype=torch.uint8, device=blocks.device)
    for place in range(8):
        codes[:, place] = word >> place * bits & 2**bits - 1
    return codes.view(-1)


def _digits(base: int, places: int) -> Tensor:
    """(256, places): the digits of every byte, lowest first."""
    byte = torch.arange(256)[:, None]
    return (byte // base ** torch.arange(places) % base).to(torch.uint8)


def _look_up(packed: Tensor, table: Tensor) -> Tensor:
    """The row of each byte, in one dimension; a row of 2, 4 or 8 bytes is looked up as one number, which is far faster."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(table.shape[1])
    rows = table.to(packed.device) if integers is None else table.to(packed.device).view(integers)[:, 0]
    return rows.index_select(0, packed.int()).view(torch.uint8).view(-1)
