"""The quantization_config block of config.json: how weights are stored, and which quantizers activations pass."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from qat_lightning.exporters.packed.manifest import FORMAT, Plain
from qat_lightning.exporters.packed.untrusted_files import PackedError
from qat_lightning.models.convert import AttentionQuantization, QuantizationRule
from qat_lightning.models.module_paths import attention_paths, part_paths
from qat_lightning.models.packed_state import Packed, quantized_modules
from qat_lightning.quantization import quantizers as package_quantizers
from qat_lightning.quantization.modules.attention import IMPLEMENTATION, InstrumentedAttention
from qat_lightning.quantization.quantizers.base import Quantizer

METHOD = "qat_lightning"

Quantizers = Mapping[str, type[Quantizer]]

PACKAGE_QUANTIZERS: Quantizers = {
    name: kind
    for name, kind in vars(package_quantizers).items()
    if isinstance(kind, type) and issubclass(kind, Quantizer) and kind is not Quantizer
}
"""The quantizers that every file can name."""


@dataclass(frozen=True)
class Weight:
    """The storage of one quantized weight; see `qat_lightning.models.packed_state.PackedWeight`."""

    packing: str
    bits: float
    shape: tuple[int, ...]
    group_size: int | None
    zero_point: float | None
    transposed: bool


@dataclass(frozen=True)
class Block:
    """The content of the quantization_config block."""

    weights: dict[str, Weight] = field(default_factory=dict)
    rules: list[QuantizationRule] = field(default_factory=list)
    attention: AttentionQuantization | None = None
    eager: bool = False  # the student computed its attention eagerly, not by a fused kernel


def class_name(kind: type[Quantizer]) -> str:
    """Return the name of a quantizer's class in a file: with its module, unless the class is one of this package."""
    name = kind.__name__
    return name if PACKAGE_QUANTIZERS.get(name) is kind else f"{kind.__module__}.{kind.__qualname__}"


def make_block(model: nn.Module, packed: Packed) -> Plain:
    """Make the block that `read_block` reads, after `check_quantizers`; equal descriptions are written once, under a name."""
    inputs, operands = check_quantizers(model)
    names: dict[str, str] = {}

    def name(quantizer: Quantizer, is_weight: bool) -> str:
        description = json.dumps(_describe(quantizer, is_weight))
        return names.setdefault(description, f"{type(quantizer).__name__} {len(names) + 1}")

    weights = {
        path: {
            "quantizer": name(weight.quantizer, is_weight=True),
            "bits": weight.bits,
            "packing": weight.packing,
            "shape": list(weight.shape),
            "group_size": weight.quantizer.group_size,
            "zero_point": weight.zero_point,
            "transposed": weight.transposed,
        }
        for path, weight in packed.weights.items()
    }
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "weights": weights,
        "inputs": {part: name(quantizer, is_weight=False) for part, quantizer in inputs.items()},
        "attention": {slot: name(quantizer, is_weight=False) for slot, quantizer in operands.items()},
        "eager": getattr(model.config, "_attn_implementation", None) in ("eager", IMPLEMENTATION),
        "quantizers": {name: json.loads(description) for description, name in names.items()},
    }


def check_quantizers(model: nn.Module) -> tuple[dict[str, Quantizer], dict[str, Quantizer]]:
    """Return the quantizers of inputs by part, and of attention's operands by operand, if a file can describe all of them.

    Raises ValueError for a quantizer that is switched off, one of activations without `spec`, one that is not part of a layer
    or an attention, and layers whose operands are quantized differently.
    """
    weights = {id(quantizer) for _, _, quantizer in quantized_modules(model)}
    inputs, operands = dict(_inputs(model)), _operands(model)
    known = weights | {id(each) for each in inputs.values()} | {id(each) for row in operands.values() for each in row}
    for path, module in model.named_modules():
        if not getattr(module, "enabled", True):
            raise ValueError(f"the quantizer {path} is switched off: call switch_on(model) before the export")
        in_slot = path.rpartition(".")[2].endswith("_quantizer") and not isinstance(module, nn.Identity)
        if (in_slot or isinstance(module, Quantizer)) and id(module) not in known:
            raise ValueError(f"a file cannot describe {path} ({type(module).__name__}): make it a Quantizer of a part")
    for quantizer in inputs.values():
        _describe(quantizer)
    return inputs, {slot: _equal(slot, layers) for slot, layers in operands.items()}


def read_block(block: Any, quantizers: Iterable[type[Quantizer]] = (), activations: bool = True) -> Block:
    """Read the block of a file, without `activations` for the weights alone.

    `quantizers` are classes of other packages that the file may name. Raises PackedError for another method or format, or a
    quantizer of activations whose class is not given; ValueError, KeyError, … for content that is not such a block.
    """
    if not isinstance(block, dict) or block.get("quant_method") != METHOD:
        method = block.get("quant_method") if isinstance(block, dict) else block
        raise PackedError(f"quantization_config is of {method!r}, not {METHOD!r}: read it with that library")
    if block.get("format") != FORMAT:
        raise PackedError(f"the packed format {block.get('format')!r} is not {FORMAT}: update qat-lightning")
    known = {**{class_name(kind): kind for kind in quantizers}, **PACKAGE_QUANTIZERS}
    descriptions, inputs, attention = block["quantizers"], block["inputs"], block["attention"]
    of_weights = {weight["quantizer"] for weight in block["weights"].values()}
    of_activations = {*inputs.values(), *attention.values()}
    if missing := (of_weights | of_activations) - descriptions.keys():
        raise ValueError(f"the quantizer {min(missing)!r} is not described")
    needed = descriptions.keys() - of_weights - of_activations | (of_activations if activations else set())
    for name, description in descriptions.items():
        if name in needed or description["class"] in PACKAGE_QUANTIZERS:
            _make(description, known)  # a wrong description is found before a model is built
    if globs := [part for part in inputs if set(part) & set("*?[")]:
        raise ValueError(f"{globs[0]!r} is not the name of a part")
    makers = {name: partial(_make, descriptions[name], known) for name in of_activations}
    operands = {slot: makers[name] for slot, name in attention.items()}
    return Block(
        weights={path: _weight(path, weight) for path, weight in block["weights"].items()},
        rules=[QuantizationRule(part, input=makers[name]) for part, name in inputs.items()] if activations else [],
        attention=AttentionQuantization(**operands) if operands and activations else None,
        eager=block["eager"] is True,
    )


def _describe(quantizer: Quantizer, is_weight: bool = False) -> Plain:
    """Return class, kind and spec; a weight is stored as codes, so its quantizer needs no spec."""
    try:
        spec = json.loads(json.dumps(quantizer.spec(), allow_nan=False))
    except (NotImplementedError, TypeError, ValueError) as error:
        if not is_weight:
            raise ValueError(
                f"a packed folder needs the spec() of {type(quantizer).__name__}, which quantizes activations: {error}"
            ) from error
        spec = None
    return {"class": class_name(type(quantizer)), "kind": quantizer.kind, "spec": spec}


def _make(description: Plain, known: Quantizers) -> Quantizer:
    kind = known.get(description["class"])
    if kind is None:
        raise PackedError(
            f"activations pass a {description['class']}, which is not a quantizer of this package: give its class,"
            f" load_packed(folder, quantizers=[{description['class'].rpartition('.')[2]}]), or activations=False"
        )
    return kind.from_spec(description["spec"])


def _inputs(model: nn.Module) -> Iterator[tuple[str, Quantizer]]:
    for part, path in part_paths(model).items():
        quantizer = getattr(model.get_submodule(path), "input_quantizer", None)
        if isinstance(quantizer, Quantizer):
            yield part, quantizer


def _operands(model: nn.Module) -> dict[str, list[Quantizer]]:
    """Return operand of an attention product → its quantizer in each layer, where it has one."""
    cores = [getattr(model.get_submodule(path), "core", None) for path in attention_paths(model)]
    found: dict[str, list[Quantizer]] = {}
    for slot in InstrumentedAttention.QUANTIZED:
        layers = [getattr(core, f"{slot}_quantizer", None) for core in cores]
        if quantizers := [quantizer for quantizer in layers if isinstance(quantizer, Quantizer)]:
            if len(quantizers) < len(layers):
                raise ValueError(f"attention.{slot} is quantized in some layers only: a file has one rule for all")
            found[slot] = quantizers
    return found


def _equal(slot: str, layers: list[Quantizer]) -> Quantizer:
    if any(_describe(each) != _describe(layers[0]) for each in layers):
        raise ValueError(f"attention.{slot} has different quantizers in different layers: a file has one rule for all")
    return layers[0]


def _weight(path: str, entry: Plain) -> Weight:
    """Read the entry of a weight and check every number."""
    weight = Weight(
        **{name: value for name, value in entry.items() if name != "quantizer"} | {"shape": tuple(entry["shape"])}
    )
    numbers = (*weight.shape, 1 if weight.group_size is None else weight.group_size)
    widths = {"bits": range(1, 9), "base3": (1.6,)}
    zero_point = weight.zero_point
    if (
        not weight.shape
        or not all(type(number) is int and number > 0 for number in numbers)
        or weight.bits not in widths[weight.packing]
        or not (zero_point is None or (type(zero_point) in (int, float) and math.isfinite(zero_point)))
        or weight.shape[-1] % (weight.group_size or 1)
    ):
        raise ValueError(f"the description of {path}.weight is not valid")
    return weight
