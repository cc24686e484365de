"""What every quantizer is: codes × scale forward, straight-through backward."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from qat_lightning.quantizers.ste import straight_through

Granularity = Literal["tensor", "row"]
"""How much shares one scale: the whole tensor, or each vector along the last dimension (an output channel of a
linear weight, one token's row of an embedding table, one token's features of an activation)."""


class Quantizer(nn.Module):
    """x → x̂ = (codes − offset) · scale, same shape and dtype, with a straight-through gradient inside ±clip.

    Subclasses write `codes`. The arithmetic runs in float32 at least, whatever autocast or the input's dtype says.

    Args:
        bits: stored width of one code, from 1 to 8.
        granularity: what shares a scale, see `Granularity`.
        clip: inputs are clamped to [−clip, clip] first; None leaves them. The papers use 2.5 for weights and
            activations alike (arXiv:2009.12812, released code).

    Raises:
        ValueError: bits outside the quantizer's range, an unknown granularity, a clip that is not positive.
    """

    bits_range: tuple[int, int] = (1, 8)

    def __init__(self, bits: int, granularity: Granularity = "tensor", clip: float | None = 2.5) -> None:
        super().__init__()
        low, high = self.bits_range
        if not low <= bits <= high:
            raise ValueError(f"bits={bits} is outside the range of {type(self).__name__}: choose {low} to {high}")
        if granularity not in get_args(Granularity):
            raise ValueError(
                f"granularity={granularity!r} is unknown: choose one of {', '.join(get_args(Granularity))}"
            )
        if clip is not None and not clip > 0:
            raise ValueError(f"clip={clip} must be positive, or null for none")
        self.bits, self.granularity, self.clip = bits, granularity, clip

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Integers (held in a floating dtype), scale and offset, broadcastable: `forward(x) == (codes - offset) * scale`."""
        raise NotImplementedError(f"{type(self).__name__} must define codes(x)")

    def calibrate(self, x: Tensor) -> None:
        """Learn what is static from data; nothing to learn here. Called again, it joins what it has seen."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            codes, scale, offset = self.codes(x)
            quantized = (codes - offset) * scale
        return straight_through(x, quantized.to(x.dtype), self.clip)

    def clipped(self, x: Tensor) -> Tensor:
        """x in float32 (float64 stays), clamped to ±clip."""
        x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def shared(self, x: Tensor) -> list[int]:
        """The dimensions over which one scale is shared."""
        return [-1] if self.granularity == "row" else list(range(x.dim()))

    def extra_repr(self) -> str:
        return f"bits={self.bits}, granularity={self.granularity}, clip={self.clip}"
