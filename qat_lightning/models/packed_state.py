"""The tensors of a packed model: what its file holds, and so what it weighs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from qat_lightning.quantization.packing.bit_packing import TRITS, pack, pack_trits, packed_bytes
from qat_lightning.quantization.packing.stored_weight import DivergedError, Stored, stored, transposed
from qat_lightning.quantization.quantizers.base import Quantizer

Rest = Literal["float32", "float16"]
Layout = Literal["bits", "trits"]


@dataclass(frozen=True)
class PackedWeight:
    """How a quantized weight is stored.

    Attributes:
        bits: width of a code; 1.6 as trits.
        shape: of the weight as its quantizer sees it; `transposed`: its module has it the other way round.
        offset: one for all, or None where a tensor holds them.
    """

    quantizer: Quantizer
    bits: float
    packing: Layout
    shape: tuple[int, ...]
    offset: float | None
    transposed: bool


@dataclass
class Packed:
    """Tensors by their names in the file, quantized weights by the paths of their modules.

    `tied`: a table that two modules read is in the file once.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, PackedWeight] = field(default_factory=dict)
    tied: bool = False


def quantized_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, Quantizer]]:
    """Path, module and quantizer of each weight that has one."""
    for path, module in model.named_modules():
        quantizer = getattr(module, "weight_quantizer", None)
        if isinstance(quantizer, Quantizer):
            yield path, module, quantizer


def packed_tensors(model: nn.Module, rest: Rest = "float32", ternary: Layout = "bits") -> Packed:
    """Each quantized weight as `.codes`, `.scale` and, where there are several, `.offset`; the rest under its own names.

    What weights' quantizers learn is in their scales. What those of activations know stays in its own type. A table that
    two modules read (tied weights) is there once if neither quantizes it; else as each of them reads it.

    Args:
        rest: type of the weights that are not quantized.
        ternary: how weights of at most three levels are stored, as 2 bits each or as five trits a byte.

    Raises:
        ValueError: an unknown choice; numbers that are not finite, or not in float16.
    """
    _check(rest, Rest, "rest")
    _check(ternary, Layout, "ternary")
    packed, quantizers = Packed(), _prefixes(model)
    for path, module, quantizer in quantized_modules(model):
        _add_weight(packed, path, module, quantizer, ternary)
    seen: set[int] = set()
    ties = bool(getattr(getattr(model, "config", None), "tie_word_embeddings", False))
    for name, tensor in model.state_dict(keep_vars=True).items():
        path, _, last = name.rpartition(".")
        if (last == "weight" and path in packed.weights) or path.endswith(".weight_quantizer"):
            continue
        again, own = id(tensor) in seen, name.startswith(quantizers)
        if again and ties:
            packed.tied = True
            continue
        seen.add(id(tensor))
        kept = _plain(name, tensor, torch.float32 if own else getattr(torch, rest))
        packed.tensors[name] = kept.clone() if again else kept  # a file has no two names for one memory
    return packed


def _prefixes(model: nn.Module) -> tuple[str, ...]:
    return tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, Quantizer))


def _add_weight(packed: Packed, path: str, module: nn.Module, quantizer: Quantizer, ternary: Layout) -> None:
    weight: Tensor = module.quantized_weight  # type: ignore[assignment]
    try:
        parts = stored(weight, quantizer)
    except ValueError as error:
        raise type(error)(f"{path}.weight: {error}") from error
    trits = ternary == "trits" and parts.bits > 1 and not parts.codes.is_meta and int(parts.codes.max()) <= 2
    packed.tensors[f"{path}.weight.codes"] = _packed_codes(parts, trits)
    packed.tensors[f"{path}.weight.scale"] = parts.scale
    if isinstance(parts.offset, Tensor):
        packed.tensors[f"{path}.weight.offset"] = parts.offset
    packed.weights[path] = PackedWeight(
        quantizer=quantizer,
        bits=8 / TRITS if trits else parts.bits,
        packing="trits" if trits else "bits",
        shape=tuple(weight.shape),
        offset=None if isinstance(parts.offset, Tensor) else parts.offset,
        transposed=transposed(module),
    )


def _packed_codes(parts: Stored, trits: bool) -> Tensor:
    if parts.codes.is_meta:
        return torch.empty(packed_bytes(parts.codes.numel(), parts.bits), dtype=torch.uint8, device="meta")
    return pack_trits(parts.codes) if trits else pack(parts.codes, parts.bits)


def _plain(name: str, tensor: Tensor, kind: torch.dtype) -> Tensor:
    """On the CPU and contiguous; whole numbers stay what they are."""
    tensor = tensor.detach()
    if tensor.is_meta:
        return tensor.to(kind) if tensor.is_floating_point() else tensor
    wide = tensor.cpu().contiguous()
    narrow = wide.to(kind) if wide.is_floating_point() else wide
    if narrow.is_floating_point():
        _check_finite(name, wide, narrow)
    return narrow


def _check_finite(name: str, wide: Tensor, narrow: Tensor) -> None:
    if narrow.isfinite().all():
        return
    if wide.isfinite().all():
        raise ValueError(f"{name} reaches {float(wide.abs().max()):.3g}, beyond float16: choose rest=float32")
    raise DivergedError(f"{name} is not finite: nothing can be stored of a training that has diverged")


def _check(value: str, choices: object, name: str) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r} is unknown: choose {' or '.join(get_args(choices))}")
