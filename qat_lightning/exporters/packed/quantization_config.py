"""The quantization_config block of config.json: how weights lie in the file, which quantizers activations pass."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from qat_lightning.exporters.packed.manifest import FORMAT, Plain
from qat_lightning.exporters.packed.quantizer_spec import describe, made
from qat_lightning.exporters.packed.untrusted_files import PackedError
from qat_lightning.models.convert import AttentionQuantization, QuantizationRule
from qat_lightning.models.module_paths import attention_paths, part_paths
from qat_lightning.models.packed_state import Packed
from qat_lightning.quantization.modules.attention import IMPLEMENTATION, InstrumentedAttention
from qat_lightning.quantization.quantizers.base import Quantizer

METHOD = "qat_lightning"


@dataclass(frozen=True)
class Weight:
    """How one quantized weight lies in the file; see `qat_lightning.models.packed_state.PackedWeight`."""

    packing: str
    bits: float
    shape: tuple[int, ...]
    group_size: int | None
    zero_point: float | None
    transposed: bool


@dataclass(frozen=True)
class Block:
    """What the quantization_config block says."""

    weights: dict[str, Weight] = field(default_factory=dict)
    rules: list[QuantizationRule] = field(default_factory=list)
    attention: AttentionQuantization | None = None
    eager: bool = False  # whether the student computed its attention so, not by a fused kernel


def make_block(model: nn.Module, packed: Packed) -> Plain:
    """What `read_block` reads; descriptions of quantizers stand in it once each, and are called by a name of their own.

    Raises:
        ValueError: a quantizer that is switched off, that cannot be described, or lies where no rule could put it.
    """
    names: dict[str, str] = {}

    def name(quantizer: Quantizer) -> str:
        description = json.dumps(describe(quantizer))
        return names.setdefault(description, f"{type(quantizer).__name__} {len(names) + 1}")

    weights = {
        path: {
            "quantizer": name(weight.quantizer),
            "bits": weight.bits,
            "packing": weight.packing,
            "shape": list(weight.shape),
            "group_size": weight.quantizer.group_size,
            "zero_point": weight.zero_point,
            "transposed": weight.transposed,
        }
        for path, weight in packed.weights.items()
    }
    inputs, operands = _inputs(model), _operands(model)
    _check_quantizers(model, [weight.quantizer for weight in packed.weights.values()], inputs, operands)
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "weights": weights,
        "inputs": {part: name(quantizer) for part, quantizer in inputs.items()},
        "attention": {slot: name(quantizers[0]) for slot, quantizers in operands.items()},
        "eager": getattr(model.config, "_attn_implementation", None) in ("eager", IMPLEMENTATION),
        "quantizers": {name: json.loads(description) for description, name in names.items()},
    }


def _inputs(model: nn.Module) -> dict[str, Quantizer]:
    """Part → the quantizer of its input."""
    slots = {
        part: getattr(model.get_submodule(path), "input_quantizer", None) for part, path in part_paths(model).items()
    }
    return {part: quantizer for part, quantizer in slots.items() if isinstance(quantizer, Quantizer)}


def _operands(model: nn.Module) -> dict[str, list[Quantizer]]:
    """Operand of an attention product → its quantizer in each layer.

    Raises:
        ValueError: layers that differ.
    """
    cores = [getattr(model.get_submodule(path), "core", None) for path in attention_paths(model)]
    found: dict[str, list[Quantizer]] = {}
    for slot in InstrumentedAttention.QUANTIZED:
        layers = [getattr(core, f"{slot}_quantizer", None) for core in cores]
        quantizers = [quantizer for quantizer in layers if isinstance(quantizer, Quantizer)]
        if quantizers and (len(quantizers) < len(layers) or len({str(describe(each)) for each in quantizers}) > 1):
            raise ValueError(
                f"attention.{slot} is quantized in one layer and not, or otherwise, in another: one rule for all"
            )
        if quantizers:
            found[slot] = quantizers
    return found


def _check_quantizers(model: nn.Module, weights: Iterable[Quantizer], inputs: Plain, operands: Plain) -> None:
    known = {
        id(each) for each in [*weights, *inputs.values(), *(each for layers in operands.values() for each in layers)]
    }
    for path, module in model.named_modules():
        if not getattr(module, "enabled", True):
            raise ValueError(f"the quantizer {path} is switched off: call switch_on(model) before the export")
        slot = path.rpartition(".")[2].endswith("_quantizer") and not isinstance(module, nn.Identity)
        if (slot or isinstance(module, Quantizer)) and id(module) not in known:
            raise ValueError(
                f"{path} ({type(module).__name__}) belongs to no part that a file could name: leave it out"
            )


def read_block(told: Any) -> Block:
    """Raises PackedError for another method or format, ValueError, KeyError, … for what makes no sense."""
    if not isinstance(told, dict) or told.get("quant_method") != METHOD:
        method = told.get("quant_method") if isinstance(told, dict) else told
        raise PackedError(
            f"quantization_config is of {method!r}, not of {METHOD!r}: read it with the library that wrote it"
        )
    if told.get("format") != FORMAT:
        raise PackedError(
            f"the packed format {told.get('format')!r} is not {FORMAT}: update qat-lightning, or export again"
        )
    descriptions = told["quantizers"]
    for name in {*descriptions, *(weight["quantizer"] for weight in told["weights"].values())}:
        made(descriptions[name])  # so that a wrong one is told before a model is built
    if globs := [part for part in told["inputs"] if set(part) & set("*?[")]:
        raise ValueError(f"{globs[0]!r} is no name of a part")
    attention = {slot: partial(made, descriptions[name]) for slot, name in told["attention"].items()}
    return Block(
        weights={path: _weight(path, weight) for path, weight in told["weights"].items()},
        rules=[
            QuantizationRule(part, input=partial(made, descriptions[name])) for part, name in told["inputs"].items()
        ],
        attention=AttentionQuantization(**attention) if attention else None,
        eager=told["eager"] is True,
    )


def _weight(path: str, told: Plain) -> Weight:
    """What its file says of a weight, every number checked."""
    weight = Weight(
        **{name: value for name, value in told.items() if name != "quantizer"} | {"shape": tuple(told["shape"])}
    )
    numbers = (*weight.shape, 1 if weight.group_size is None else weight.group_size)
    layouts = {"bits": range(1, 9), "base3": (1.6,)}
    if (
        not weight.shape
        or not all(type(number) is int and number > 0 for number in numbers)
        or weight.bits not in layouts[weight.packing]
        or (
            weight.zero_point is not None
            and not (type(weight.zero_point) in (int, float) and math.isfinite(weight.zero_point))
        )
        or weight.shape[-1] % (weight.group_size or 1)
    ):
        raise ValueError(f"the description of {path}.weight makes no sense")
    return weight
