"""Weights in an ONNX file: packed bytes in a uint8 initializer, which the runtime unpacks once, when it loads the file.

Shapes: R rows, C columns, P codes a byte, S scales a row; K inputs, N outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from qat_lightning.quantization.packing.bit_packing import pack
from qat_lightning.quantization.packing.stored_weight import Stored

WIDTHS = {1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}
"""Width of a code → its width in the file: the next that divides a byte, so that standard operators can unpack it."""

SAFE = 64
"""Largest |weight| of int8 beside uint8 activations: 2 · 255 · 64 fits into the 16 bits in which processors without VNNI
add two products; beyond, uint8 weights, for which the runtime takes the longer way."""


class PackedRows(nn.Module):
    """Codes (R, C) as bytes (R, ⌈C/P⌉) and a table (256, P) from a byte to the values of its codes.

    Looking a byte up is Cast, Gather, Reshape: operators of every runtime, which it folds when it loads. `codes` are uint8 of
    `bits` width, `values` (2^bits,) the value of each; the output has their type.
    """

    packed: Tensor
    table: Tensor

    def __init__(self, codes: Tensor, bits: int, values: Tensor) -> None:
        super().__init__()
        width = WIDTHS[bits]
        places = 8 // width
        self.columns, self.padding = codes.shape[1], -codes.shape[1] % places
        self.register_buffer("packed", pack(functional.pad(codes, (0, self.padding)), width).view(len(codes), -1))
        digits = torch.arange(256)[:, None] >> width * torch.arange(places) & 2**width - 1
        self.register_buffer("table", values[digits.clamp(max=len(values) - 1)])

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """Return all rows (R, C), or the rows of the given numbers (…) → (…, C)."""
        chosen = self.packed if rows is None else functional.embedding(rows, self.packed)
        values = functional.embedding(chosen.int(), self.table).flatten(-2)
        return values[..., : self.columns] if self.padding else values


class IntegerWeight(nn.Module):
    """A weight (N, K) as whole numbers (K, N), int8 or uint8 with `zero`; its scale multiplies the product. See `is_integer`."""

    zero: Tensor
    scale: Tensor

    def __init__(self, stored: Stored) -> None:
        super().__init__()
        integers, times = _integer_values(stored)
        in_use = [
            integers[int(end)] for end in stored.codes.aminmax()
        ]  # three ternary values leave a fourth code unused
        signed = float(torch.stack(in_use).abs().max()) <= SAFE
        within = integers.clamp(-128, 127)  # values beyond belong to unused codes
        values = within.to(torch.int8) if signed else (within + 128).to(torch.uint8)
        self.register_buffer("zero", torch.tensor(0 if signed else 128, dtype=values.dtype))
        self.register_buffer("scale", (stored.scale / times).reshape(-1 if stored.scale.numel() > 1 else ()))
        self.rows = PackedRows(stored.codes.t().contiguous(), stored.bits, values)

    def forward(self) -> Tensor:
        return self.rows()


class FloatWeight(nn.Module):
    """Any weight (R, C) in float32, (codes − zero_point) · scale: all of it, folded when the runtime loads it, or some rows."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, stored: Stored) -> None:
        super().__init__()
        values = torch.arange(2.0**stored.bits)
        self.single, self.moved = stored.scale.numel() == 1, isinstance(stored.zero_point, Tensor)
        if isinstance(stored.zero_point, Tensor):
            self.register_buffer("zero_point", stored.zero_point.expand(stored.scale.shape).flatten(1))
        else:
            values = values - stored.zero_point
        if self.single:
            values = values * stored.scale.reshape(())
        else:
            self.register_buffer("scale", stored.scale.flatten(1))
        self.rows = PackedRows(stored.codes.flatten(1), stored.bits, values)

    def forward(self, rows: Tensor | None = None) -> Tensor:
        values = self.rows(rows)
        if self.single:
            return values
        values = values.unflatten(-1, (self.scale.shape[1], -1))
        if self.moved:
            values = values - self._of(self.zero_point, rows)
        return (values * self._of(self.scale, rows)).flatten(-2)

    @staticmethod
    def _of(table: Tensor, rows: Tensor | None) -> Tensor:
        """Select rows of a table: (…, S, 1)."""
        return (table if rows is None else functional.embedding(rows, table)).unsqueeze(-1)


def is_integer(stored: Stored) -> bool:
    """Return whether codes − zero_point, or twice that, are 8-bit integers with at most one scale for each output."""
    if isinstance(stored.zero_point, Tensor) or stored.codes.dim() != 2:
        return False
    integers, _ = _integer_values(stored)
    low, high = (float(integers[int(end)]) for end in stored.codes.aminmax())
    return low.is_integer() and low >= -128 and high <= 127


def _integer_values(stored: Stored) -> tuple[Tensor, int]:
    """Return the value of each code as an integer, and the factor that makes it one: 2 for ±½, ±1½, …"""
    assert isinstance(stored.zero_point, float)
    times = 1 if stored.zero_point.is_integer() else 2
    return (torch.arange(2.0**stored.bits) - stored.zero_point) * times, times
