"""The base of all quantizers: codes × scale forward, straight-through backward."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self, get_args, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn

from qat_lightning.quantization.quantizers.reuse import LATEST, Codes, attach_codes, is_shareable, memory_key
from qat_lightning.quantization.quantizers.straight_through import straight_through

Granularity = Literal["per_tensor", "per_channel", "per_token", "per_group"]
"""What shares one scale: the whole tensor; each vector along the last dimension, which is one output channel of a weight or
one row of an embedding table (per_channel), or the features of one token of an activation (per_token); or each `group_size`
neighbours in that dimension. per_channel and per_token compute the same; the two words are those of the field."""

Scale = Literal["dynamic", "static"]


class IntegerGrid(NamedTuple):
    """Whole codes low … high with zero point 0 and one scale `step` for the tensor: None takes max|x|/high, at most clip/high."""

    low: float
    high: float
    step: Tensor | None
    clip: float | None


class Quantizer(nn.Module):
    """x → x̂ = (codes − zero_point) · scale, same shape and dtype, with a straight-through gradient inside ±clip.

    A subclass defines `codes`. It describes itself by `kind`, `source`, `levels` and `spec`, which exports, reports and model
    cards read; a subclass without `spec` trains, and its weights are exported as codes. What needs `spec` (a packed folder
    with this quantizer on activations) names it. The arithmetic runs in float32 at least, whatever autocast or the input's
    dtype says.

    Args:
        bits: stored width of one code, from 1 to 8.
        granularity: what shares a scale, see `Granularity`; group_size: elements of a group of "per_group", which must divide
            the last dimension.
        clip: inputs are clamped to [−clip, clip] first; None leaves them. The papers use 2.5 for weights and
            activations alike (arXiv:2009.12812, released code).

    Raises:
        ValueError: bits outside the quantizer's range, an unknown granularity, a clip that is not positive, a group size
            that is missing or does not divide.
    """

    source = ""
    """The paper that describes the quantizer, as `arXiv:1605.04711`."""
    scale: str = "dynamic"
    """Where the scale comes from: "dynamic" (the tensor at hand), "static" (calibration) or "learned"."""
    bits_range: tuple[int, int] = (1, 8)
    has_zero_point = True
    """Whether `codes` ever returns a zero point other than 0."""
    code_type: torch.dtype | None = None
    """int8 or uint8, if every code fits into it; None: codes are not saved in bytes."""
    is_deterministic = False
    """Whether equal public attributes give equal results for equal tensors: nothing is learned, measured or random."""
    rows_are_independent = True
    """Whether a row can be quantized without the other rows, if rows do not share a scale."""

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
        check_choice(granularity, Granularity, "granularity")
        if clip is not None and not 0 < clip < math.inf:
            raise ValueError(f"clip={clip} must be positive and finite, or null for none")
        if (granularity == "per_group") != (group_size is not None) or (group_size is not None and group_size < 1):
            raise ValueError(f"granularity={granularity} with group_size={group_size}: per_group alone takes 1 or more")
        self.bits, self.granularity, self.clip, self.group_size = bits, granularity, clip, group_size
        self.enabled = True  # False: x passes unchanged
        self.keep_codes = False  # set by a layer that saves codes in bytes
        self._cached: tuple[tuple[object, ...], Tensor] | None = None

    @property
    def kind(self) -> str:
        """The name that reports and cards print: "ternary", "uniform", …; without one of its own, the class's name."""
        return type(self).__name__

    def levels(self) -> int:
        """The number of values that a scale allows."""
        return 2**self.bits

    def spec(self) -> dict[str, Any]:
        """JSON from which `from_spec` makes the same quantizer, apart from what it has measured or learned."""
        raise NotImplementedError(f"{type(self).__name__} does not define spec()")

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Make the quantizer that `spec` describes; here the constructor's arguments, as `arguments` returns them.

        Raises ValueError for arguments that are missing, unknown, or of another type or range.
        """
        hints = _hints(cls)
        if not isinstance(spec, Mapping) or spec.keys() != hints.keys():
            raise ValueError(f"{cls.__name__} takes {', '.join(hints)}; the spec is {spec!r}")
        for name, value in spec.items():
            try:
                TypeAdapter(hints[name], config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
            except ValidationError as error:
                raise ValueError(f"{cls.__name__}: {name}={value!r} is not a {hints[name]}") from error
        return cls(**spec)

    def integer_grid(self) -> IntegerGrid | None:
        """The whole codes of the quantizer, for products of integers; None where it has no such codes."""
        return None

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Integers (in a floating dtype), scale and zero_point, broadcastable: `forward(x) == (codes - zero_point) * scale`.

        With granularity "per_group" the last dimension is split in two, (groups, group_size). The codes are new memory, which
        the caller may write to.
        """
        raise NotImplementedError(f"{type(self).__name__} must define codes(x)")

    def choose_scale(self, scale: Scale) -> None:
        """Set whether the scale is measured once ("static") or on each tensor ("dynamic").

        Raises ValueError for another value, and a static scale of rows, or without a clip as its first value.
        """
        if check_choice(scale, Scale, "scale") == "static" and (self.granularity != "per_tensor" or self.clip is None):
            raise ValueError("a static scale is one for the tensor: it needs granularity=per_tensor and a clip")
        self.scale = scale
        self.static, self.calibrated = scale == "static", False
        self.is_deterministic = not self.static

    def calibrate(self, x: Tensor) -> None:
        """Measure static scales on x, joined with earlier calls; a quantizer without static scales ignores it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return x
        if (cached := self.find_cached(x)) is not None:
            return cached
        shared = self.is_deterministic and is_shareable(x)
        if shared and (latest := LATEST.find(x, self._settings)) is not None:
            return latest
        with_gradient = torch.is_grad_enabled()
        with torch.no_grad():
            codes, scale, zero_point = self.codes(x)
            in_bytes = self.codes_in_bytes(codes, scale, zero_point, x) if with_gradient else None
            # In place: on a CPU new memory costs more than the arithmetic.
            quantized = (codes.sub_(zero_point) if self.has_zero_point else codes).mul_(scale).reshape(x.shape)
        result = attach_codes(straight_through(x, quantized.to(x.dtype), self.clip), in_bytes)
        if shared:
            LATEST.store(x, self._settings, result)
        return result

    @torch.no_grad()
    def cache(self, weight: Tensor) -> None:
        """Quantize the weight once; until `clear_cache`, calls without gradients reuse the result while it is unchanged."""
        self.clear_cache()
        self._cached = memory_key(weight), self(weight)

    def clear_cache(self) -> None:
        self._cached = None

    def find_cached(self, x: Tensor) -> Tensor | None:
        """The cached result for x, if x is the unchanged weight of `cache`."""
        if self._cached is None or torch.is_grad_enabled():
            return None
        key, quantized = self._cached
        # Under a compiler tensors have no memory address, but rows of a table differ from the table in shape.
        same = x.shape == quantized.shape if torch.compiler.is_compiling() else key == memory_key(x)
        return quantized if same else None

    def codes_in_bytes(self, codes: Tensor, scale: Tensor, zero_point: Tensor, x: Tensor) -> Codes | None:
        """The codes in bytes, if a layer saves them for its backward pass and no compiler decides what is saved."""
        if not self.keep_codes or self.code_type is None or torch.compiler.is_compiling():
            return None
        return Codes(codes.to(self.code_type), scale, zero_point if self.has_zero_point else None, x.shape, x.dtype)

    @property
    def _settings(self) -> tuple[object, ...]:
        """All that determines the result of a deterministic quantizer."""
        return type(self), *(
            item for item in vars(self).items() if item[0] != "training" and not item[0].startswith("_")
        )

    def prepared(self, x: Tensor) -> Tensor:
        """x in float32 (float64 stays), clamped to ±clip, its last dimension split into groups where there are any."""
        x = self.widened(x)
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def widened(self, x: Tensor) -> Tensor:
        """x in float32 (float64 stays), its last dimension split into groups where there are any; perhaps x itself."""
        return self.grouped(to_float32(x.detach()))

    def grouped(self, x: Tensor) -> Tensor:
        """(…, E) → (…, groups, group_size) with granularity "per_group", else x itself."""
        if self.group_size is None:
            return x
        if x.shape[-1] % self.group_size:
            raise ValueError(f"group_size={self.group_size} does not divide the last dimension of {tuple(x.shape)}")
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


def arguments(quantizer: Quantizer) -> dict[str, Any]:
    """The constructor's arguments of a quantizer that keeps each one as an attribute of the same name."""
    return {name: getattr(quantizer, name) for name in _hints(type(quantizer))}


def check_choice(value: str, choices: object, name: str) -> str:
    """Return `value`; raise ValueError if it is not one of a Literal's choices.

    >>> check_choice("mean", Literal["mean", "sum"], "reduction")
    'mean'
    """
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r} is unknown: choose one of {', '.join(get_args(choices))}")
    return value


def _hints(kind: type[Quantizer]) -> dict[str, Any]:
    hints = get_type_hints(kind.__init__)
    return {name: hints[name] for name in inspect.signature(kind).parameters}


def to_float32(x: Tensor) -> Tensor:
    """Convert x to float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
