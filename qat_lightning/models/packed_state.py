"""The tensors of a packed model: what its file holds, and so what it weighs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from qat_lightning.quantization.packing.bit_packing import TRITS, pack, pack_base3
from qat_lightning.quantization.packing.stored_weight import DivergedError, stored, transposed
from qat_lightning.quantization.quantizers.base import Quantizer, check_choice

UnquantizedDtype = Literal["float32", "float16"]
TernaryEncoding = Literal["2bit", "base3"]


@dataclass(frozen=True)
class PackedWeight:
    """How a quantized weight is stored.

    Attributes:
        bits: width of a code; 1.6 as trits.
        shape: of the weight as its quantizer sees it; `transposed`: its module has it the other way round.
        zero_point: one for all, or None where a tensor holds them.
    """

    quantizer: Quantizer
    bits: float
    packing: Literal["bits", "base3"]
    shape: tuple[int, ...]
    zero_point: float | None
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
    """Yield path, module and quantizer of each quantized weight."""
    for path, module in model.named_modules():
        quantizer = getattr(module, "weight_quantizer", None)
        if isinstance(quantizer, Quantizer):
            yield path, module, quantizer


def packed_tensors(
    model: nn.Module, unquantized_dtype: UnquantizedDtype = "float32", ternary_encoding: TernaryEncoding = "2bit"
) -> Packed:
    """Each quantized weight as `.codes`, `.scale` and, where there are several, `.zero_point`; the rest under its own names.

    What weights' quantizers learn is in their scales. What those of activations know stays in its own type. A table that
    two modules read (tied weights) is there once if neither quantizes it; else as each of them reads it.

    Args:
        unquantized_dtype: type of the weights that are not quantized.
        ternary_encoding: how weights of at most three levels are stored, as 2 bits each or as five trits a byte.

    Raises:
        ValueError: an unknown choice; numbers that are not finite, or not in float16.
    """
    check_choice(unquantized_dtype, UnquantizedDtype, "unquantized_dtype")
    check_choice(ternary_encoding, TernaryEncoding, "ternary_encoding")
    packed, quantizers = Packed(), _prefixes(model)
    for path, module, quantizer in quantized_modules(model):
        _add_weight(packed, path, module, quantizer, ternary_encoding)
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
        converted = _plain(name, tensor, torch.float32 if own else getattr(torch, unquantized_dtype))
        packed.tensors[name] = converted.clone() if again else converted  # a file has no two names for one memory
    return packed


def _prefixes(model: nn.Module) -> tuple[str, ...]:
    return tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, Quantizer))


def _add_weight(
    packed: Packed, path: str, module: nn.Module, quantizer: Quantizer, ternary_encoding: TernaryEncoding
) -> None:
    weight: Tensor = module.quantized_weight  # type: ignore[assignment]
    try:
        parts = stored(weight, quantizer)
    except ValueError as error:
        raise type(error)(f"{path}.weight: {error}") from error
    trits = ternary_encoding == "base3" and parts.bits > 1 and int(parts.codes.max()) <= 2
    packed.tensors[f"{path}.weight.codes"] = pack_base3(parts.codes) if trits else pack(parts.codes, parts.bits)
    packed.tensors[f"{path}.weight.scale"] = parts.scale
    if isinstance(parts.zero_point, Tensor):
        packed.tensors[f"{path}.weight.zero_point"] = parts.zero_point
    packed.weights[path] = PackedWeight(
        quantizer=quantizer,
        bits=8 / TRITS if trits else parts.bits,
        packing="base3" if trits else "bits",
        shape=tuple(weight.shape),
        zero_point=None if isinstance(parts.zero_point, Tensor) else parts.zero_point,
        transposed=transposed(module),
    )


def _plain(name: str, tensor: Tensor, kind: torch.dtype) -> Tensor:
    """Copy a tensor to the CPU, contiguous; floating point numbers get the type `kind`."""
    tensor = tensor.detach()
    wide = tensor.cpu().contiguous()
    narrow = wide.to(kind) if wide.is_floating_point() else wide
    if narrow.is_floating_point():
        _check_finite(name, wide, narrow)
    return narrow


def _check_finite(name: str, wide: Tensor, narrow: Tensor) -> None:
    if narrow.isfinite().all():
        return
    if wide.isfinite().all():
        raise ValueError(
            f"{name} reaches {float(wide.abs().max()):.3g}, beyond float16: choose unquantized_dtype=float32"
        )
    raise DivergedError(f"{name} is not finite: the training has diverged")
