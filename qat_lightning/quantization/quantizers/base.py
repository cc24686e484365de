"""What every quantizer is: codes × scale forward, straight-through backward."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from qat_lightning.quantization.quantizers.reuse import LATEST, Codes, may_come_again, place, with_codes
from qat_lightning.quantization.quantizers.straight_through import straight_through

Granularity = Literal["per_tensor", "per_channel", "per_token", "per_group"]
"""What shares one scale: the whole tensor; each vector along the last dimension, which is one output channel of a weight or
one row of an embedding table (per_channel), or the features of one token of an activation (per_token); or each `group_size`
neighbours in that dimension. per_channel and per_token compute the same; the two words are those of the field."""

Scale = Literal["dynamic", "static"]


class Quantizer(nn.Module):
    """x → x̂ = (codes − zero_point) · scale, same shape and dtype, with a straight-through gradient inside ±clip.

    Subclasses write `codes`. The arithmetic runs in float32 at least, whatever autocast or the input's dtype says.

    Args:
        bits: stored width of one code, from 1 to 8.
        granularity: what shares a scale, see `Granularity`.
        clip: inputs are clamped to [−clip, clip] first; None leaves them. The papers use 2.5 for weights and
            activations alike (arXiv:2009.12812, released code).
        group_size: elements of a group, with granularity "per_group"; it must divide the last dimension.

    Raises:
        ValueError: bits outside the quantizer's range, an unknown granularity, a clip that is not positive, a group size
            that is missing or does not divide.
    """

    bits_range: tuple[int, int] = (1, 8)
    has_zero_point = True
    """Whether `codes` ever returns a zero point other than 0."""
    code_type: torch.dtype | None = None
    """Of one byte, int8 or uint8, which holds every code; None: codes are not kept in bytes."""
    alike = False
    """Whether two of equal public attributes make the same of the same tensor: nothing is learned, measured or drawn."""
    rows_are_independent = True
    """Whether each row, where rows do not share a scale, can be quantized without the others at hand."""

    def __init__(
        self,
        bits: int,
        granularity: Granularity = "per_tensor",
        clip: float | None = 2.5,
        group_size: int | None = None,
    ) -> None:
        super().__init__()
        low, high = self.bits_range
        if not (isinstance(bits, int) and low <= bits <= high):
            raise ValueError(f"bits={bits} is outside the range of {type(self).__name__}: choose {low} to {high}")
        if granularity not in get_args(Granularity):
            raise ValueError(
                f"granularity={granularity!r} is unknown: choose one of {', '.join(get_args(Granularity))}"
            )
        if clip is not None and not 0 < clip < math.inf:
            raise ValueError(f"clip={clip} must be positive and finite, or null for none")
        if (granularity == "per_group") != (group_size is not None) or (group_size is not None and group_size < 1):
            raise ValueError(
                f"granularity={granularity} with group_size={group_size}: granularity=per_group needs a group_size of 1 or more,"
                " and no other takes one"
            )
        self.bits, self.granularity, self.clip, self.group_size = bits, granularity, clip, group_size
        self.enabled = True  # a knob: switched off, x passes as it is
        self.keep_codes = False  # a knob of the layer that this is part of: `held` is asked for
        self._kept: tuple[tuple[object, ...], Tensor] | None = None

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Integers (held in a floating dtype), scale and zero_point, broadcastable: `forward(x) == (codes - zero_point) * scale`.

        With granularity "per_group" the last dimension is split in two, (groups, group_size). The codes are new memory, which
        the caller may write to.
        """
        raise NotImplementedError(f"{type(self).__name__} must define codes(x)")

    def calibrate(self, x: Tensor) -> None:
        """Learn what is static from data; nothing to learn here. Called again, it joins what it has seen."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return x
        if (kept := self.kept(x)) is not None:
            return kept
        shared = self.alike and may_come_again(x)
        if shared and (known := LATEST.find(x, self._settings)) is not None:
            return known
        keeping = torch.is_grad_enabled()
        with torch.no_grad():
            codes, scale, zero_point = self.codes(x)
            held = self.held(codes, scale, zero_point, x) if keeping else None
            # In place: on a CPU most of the time is spent on memory that is new, not on the arithmetic.
            quantized = (codes.sub_(zero_point) if self.has_zero_point else codes).mul_(scale).reshape(x.shape)
        result = with_codes(straight_through(x, quantized.to(x.dtype), self.clip), held)
        if shared:
            LATEST.keep(x, self._settings, result)
        return result

    @torch.no_grad()
    def keep(self, weight: Tensor) -> None:
        """Until `release`, this weight is quantized no more where no gradient is asked for, unless it changes."""
        self.release()
        self._kept = place(weight), self(weight)

    def release(self) -> None:
        self._kept = None

    def kept(self, x: Tensor) -> Tensor | None:
        """What was made of x by `keep`."""
        if self._kept is None or torch.is_grad_enabled():
            return None
        where, quantized = self._kept
        # A compiler's tensors have no place; but there the rows of a table are told from the table.
        same = x.shape == quantized.shape if torch.compiler.is_compiling() else where == place(x)
        return quantized if same else None

    def held(self, codes: Tensor, scale: Tensor, zero_point: Tensor, x: Tensor) -> Codes | None:
        """The same in bytes, where a layer will keep them until its backward pass and no compiler decides what is kept."""
        if not self.keep_codes or self.code_type is None or torch.compiler.is_compiling():
            return None
        return Codes(codes.to(self.code_type), scale, zero_point if self.has_zero_point else None, x.shape, x.dtype)

    @property
    def _settings(self) -> tuple[object, ...]:
        """All that decides the result of a quantizer that is `alike`."""
        return type(self), *(
            item for item in vars(self).items() if item[0] != "training" and not item[0].startswith("_")
        )

    def prepared(self, x: Tensor) -> Tensor:
        """x in float32 (float64 stays), clamped to ±clip, its last dimension split into groups where there are any."""
        x = self.wide(x)
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def wide(self, x: Tensor) -> Tensor:
        """x in float32 (float64 stays), its last dimension split into groups where there are any; perhaps x itself."""
        return self.grouped(x.detach().to(torch.promote_types(x.dtype, torch.float32)))

    def grouped(self, x: Tensor) -> Tensor:
        """(…, E) → (…, groups, group_size) with granularity "per_group", else x itself."""
        if self.group_size is None:
            return x
        if x.shape[-1] % self.group_size:
            raise ValueError(
                f"group_size={self.group_size} does not divide the last dimension of a tensor of shape {tuple(x.shape)}"
            )
        return x.unflatten(-1, (-1, self.group_size))

    def shared(self, x: Tensor) -> list[int]:
        """The dimensions of `prepared` values over which one scale is shared."""
        return list(range(x.dim())) if self.granularity == "per_tensor" else [-1]

    def scales(self, shape: torch.Size) -> int:
        """How many scales a tensor of this shape takes."""
        elements = shape.numel()
        return 1 if self.granularity == "per_tensor" else elements // (self.group_size or shape[-1])

    def extra_repr(self) -> str:
        group = "" if self.group_size is None else f" of {self.group_size}"
        return f"bits={self.bits}, granularity={self.granularity}{group}, clip={self.clip}"


def is_static(scale: str, granularity: Granularity, clip: float | None) -> bool:
    """Whether a scale is learned from data once ("static") or taken from the tensor at hand ("dynamic").

    Raises:
        ValueError: another word; a static scale of rows, or without a clip to begin from.
    """
    if scale not in get_args(Scale):
        raise ValueError(f"scale={scale!r} is unknown: choose {' or '.join(get_args(Scale))}")
    if scale == "static" and (granularity != "per_tensor" or clip is None):
        raise ValueError(
            "a static scale is one for the tensor, below the clip: it needs granularity=per_tensor and a clip"
        )
    return scale == "static"
