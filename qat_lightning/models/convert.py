"""Surgery in place: open the attention, put quantizers where the rules say, calibrate what is static."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from qat_lightning.models.module_paths import attention_paths, family, layer_config, layer_paths, part_kind, part_paths
from qat_lightning.models.sites import CORE_SITES, MAPS
from qat_lightning.quantization.modules.activation_checkpointing import checkpoint_layers
from qat_lightning.quantization.modules.attention import IMPLEMENTATION, InstrumentedAttention, register
from qat_lightning.quantization.modules.layers import QuantConv1D, QuantConv2d, QuantEmbedding, QuantLinear
from qat_lightning.quantization.quantizers.base import Quantizer

MakeQuantizer = Callable[..., nn.Module]


@dataclass(frozen=True)
class QuantizationRule:
    """Which parts get which quantizers.

    Args:
        target_modules: a glob over part names (`qat_lightning.models.module_paths.part_paths`): `layers.*.feedforward.*`,
            `embeddings.word`.
        weight, input: called once for each part; None leaves that tensor in full precision.
        optional: a model without such a part is accepted (an image model has no word embedding).
    """

    target_modules: str
    weight: MakeQuantizer | None = None
    input: MakeQuantizer | None = None
    optional: bool = False


@dataclass(frozen=True)
class AttentionQuantization:
    """Quantizers for the operands of the two attention products, in every layer (see `InstrumentedAttention`)."""

    query: MakeQuantizer | None = None
    key: MakeQuantizer | None = None
    probs: MakeQuantizer | None = None
    value: MakeQuantizer | None = None


def open_attention(model: nn.Module) -> nn.Module:
    """Give every attention of a transformers model a core; the outputs stay those of eager attention. In place.

    A core that was lean is so no longer: what is opened by this function can be read and differentiated twice.

    Raises:
        ValueError: a family without a table, or one that does not route through transformers' attention interface.
    """
    for path in attention_paths(model):
        attention = model.get_submodule(path)
        if not hasattr(attention, "core"):
            attention.core = InstrumentedAttention().train(attention.training)
    _set_lean(model, False)
    if family(model).reroute:
        from qat_lightning.models.rerouted_attention import reroute

        for path in attention_paths(model):
            reroute(model.get_submodule(path))
        return model
    model.set_attn_implementation(register())  # type: ignore[operator]
    if model.config._attn_implementation != IMPLEMENTATION:  # type: ignore[union-attr]
        raise ValueError(f"{type(model).__name__} does not route through transformers' attention interface")
    return model


def open_attention_for(model: nn.Module, sites: Iterable[str]) -> nn.Module:
    """Open the attention only where one of the sites is inside it; else it stays on its fast path.

    Where none of the sites is a map, the cores are lean: they make no map that nobody reads.
    """
    if read := CORE_SITES.intersection(sites):
        _set_lean(open_attention(model), not read & MAPS)
    return model


def _set_lean(model: nn.Module, lean: bool) -> None:
    for path in attention_paths(model):
        model.get_submodule(f"{path}.core").lean = lean  # type: ignore[assignment]


def checkpoint_activations(model: nn.Module) -> nn.Module:
    """Let each layer keep its input alone and run again in the backward pass: less memory, the same numbers. In place.

    Raises:
        ValueError: a family without a table, or one that transformers does not checkpoint.
    """
    checkpoint_layers(model.get_submodule(path) for path in layer_paths(model))
    return model


def quantize(
    model: nn.Module,
    rules: Sequence[QuantizationRule],
    attention: AttentionQuantization | None = None,
    bits: Mapping[str, int] | None = None,
) -> nn.Module:
    """Put quantizers into `model`, in place; the first rule that matches a part wins. Parameters stay the same objects.

    Args:
        bits: glob over part names → width of the weights there, in place of the rule's own; the first that matches wins
            (mixed precision, arXiv:2101.05938, released code).

    Raises:
        ValueError: a rule or a glob that no part of this model falls to, or a part that is neither linear, a
            convolution nor an embedding.
    """
    parts = part_paths(model)
    matches = {part: [rule for rule in rules if fnmatchcase(part, rule.target_modules)] for part in parts}
    winners = {part: found[0] for part, found in matches.items() if found}
    for rule in rules:
        if not rule.optional and not any(winner is rule for winner in winners.values()):
            raise ValueError(
                f"target_modules={rule.target_modules!r} matches no part of {type(model).__name__} that an earlier rule has left;"
                f" parts: {_brief(parts)}"
            )
    widths = _widths(bits or {}, [part for part, rule in winners.items() if rule.weight])
    for part, rule in winners.items():
        if rule.weight or rule.input:
            module = model.get_submodule(parts[part])
            model.set_submodule(parts[part], _quantized(module, rule, part, widths.get(part)))
    if attention is not None:
        _quantize_attention(model, attention)
    return model


def adjustable_parts(model: nn.Module, rules: Sequence[QuantizationRule]) -> list[str]:
    """Return the parts whose weights these rules quantize with a quantizer that takes `bits`, so that a width can be chosen."""
    winners = {
        part: next((rule for rule in rules if fnmatchcase(part, rule.target_modules)), None)
        for part in part_paths(model)
    }
    return [part for part, rule in winners.items() if rule is not None and rule.weight and _takes_bits(rule.weight)]


def _takes_bits(make: MakeQuantizer) -> bool:
    return "bits" in inspect.signature(make).parameters


def keep_layers(model: nn.Module, layers: Sequence[int]) -> nn.Module:
    """Leave only these layers of `model`, in this order: a shallower student of the same width. In place.

    Each layer keeps its own kind of attention: lists of the configuration that hold a value for each layer follow.

    Raises:
        ValueError: no layer, one that the model does not have, one twice, or a layer that would compute something else at
            another position.
    """
    paths = layer_paths(model)
    if not layers or not all(0 <= layer < len(paths) for layer in layers):
        raise ValueError(f"layers={list(layers)}: name at least one of the model's layers, 0 to {len(paths) - 1}")
    if len(set(layers)) < len(layers):
        raise ValueError(f"layers={list(layers)} names a layer twice: name each layer once")
    if family(model).first_layer_differs and (layers[0] != 0):
        raise ValueError(
            f"layers={list(layers)}: the first layer of this family differs from the others: keep 0 as the first"
        )
    _describe_layers(layer_config(model), layers, len(paths))
    if family(model).shared:
        return model
    stack = paths[0].rpartition(".")[0]
    model.set_submodule(stack, nn.ModuleList(model.get_submodule(paths[layer]) for layer in layers))
    for position, path in enumerate(attention_paths(model)):  # where a cache keeps the layer's keys and values
        if hasattr(attention := model.get_submodule(path), "layer_idx"):
            attention.layer_idx = position  # type: ignore[assignment]
    return model


def _describe_layers(config: Any, layers: Sequence[int], depth: int) -> None:
    """Change the configuration of a model of `depth` layers to these layers."""
    if getattr(config, "scale_attn_by_inverse_layer_idx", False) and list(layers) != list(range(len(layers))):
        raise ValueError(
            f"layers={list(layers)}: this model divides the scores of a layer by its position"
            " (scale_attn_by_inverse_layer_idx in its config.json): keep the first layers, [0, 1, …]"
        )
    for name, value in vars(config).items():
        if "layer" in name and isinstance(value, list | tuple) and len(value) == depth:
            setattr(config, name, [value[layer] for layer in layers])
    if hasattr(config, "max_window_layers"):  # the first so many layers have full attention
        config.max_window_layers = sum(layer < config.max_window_layers for layer in layers)
    config.num_hidden_layers = len(layers)


def _widths(bits: Mapping[str, int], parts: Sequence[str]) -> dict[str, int]:
    """Return the width of each part that the table names."""
    winners = {part: glob for part in parts if (glob := next((g for g in bits if fnmatchcase(part, g)), None))}
    for glob in bits:
        if glob not in winners.values():
            raise ValueError(
                f"the table of bits names {glob!r}, to which no part falls that an earlier line has left; parts with"
                f" quantized weights: {_brief(parts) or 'none'}"
            )
    return {part: bits[glob] for part, glob in winners.items()}


def _quantized(module: nn.Module, rule: QuantizationRule, part: str, bits: int | None) -> nn.Module:
    weight = None if rule.weight is None else _make_weight_quantizer(rule.weight, part, bits)
    inputs = None if rule.input is None else _for_activations(rule.input(), part)
    if isinstance(module, nn.Linear):
        return QuantLinear(module, weight, inputs)
    if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros":
        return QuantConv2d(module, weight, inputs)
    if type(module).__name__ == "Conv1D":  # transformers' own; its import takes seconds
        return QuantConv1D(module, weight, inputs)
    looked_up = type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")
    if isinstance(module, nn.Embedding) and looked_up and weight is not None and inputs is None:
        return QuantEmbedding(module, weight)
    raise ValueError(
        f"part {part!r} is a {type(module).__name__}: weights and inputs of linear layers and of convolutions on"
        " patches, and weights of embeddings, can be quantized"
    )


def _for_activations(quantizer: nn.Module, part: str) -> nn.Module:
    if (
        isinstance(quantizer, Quantizer)
        and quantizer.granularity != "per_tensor"
        and not quantizer.rows_are_independent
    ):
        raise ValueError(
            f"part {part!r}: granularity={quantizer.granularity} has a learned step for each and is for weights, whose rows"
            " stay; give activations granularity=per_tensor"
        )
    return quantizer


def _make_weight_quantizer(make: MakeQuantizer, part: str, bits: int | None) -> nn.Module:
    if bits is None:
        return make()
    try:
        return make(bits=bits)
    except TypeError as error:
        raise ValueError(
            f"the table of bits gives {part!r} {bits}, but its quantizer has a width of its own: choose one that takes"
            " bits (lsq, uniform)"
        ) from error
    except ValueError as error:
        raise ValueError(f"the table of bits gives {part!r} {bits}: {error}") from error


def _quantize_attention(model: nn.Module, rule: AttentionQuantization) -> None:
    open_attention(model)
    for path in attention_paths(model):
        core = model.get_submodule(f"{path}.core")
        for slot in InstrumentedAttention.QUANTIZED:
            if (make := getattr(rule, slot)) is not None:
                quantizer = _for_activations(make(), f"attention.{slot}")
                core.add_module(f"{slot}_quantizer", quantizer.train(core.training))


def _brief(parts: Iterable[str]) -> str:
    """List part names with layers folded: `layers.*.attention.query` once."""
    folded = (f"layers.*.{part_kind(part)}" if part.startswith("layers.") else part for part in parts)
    return ", ".join(dict.fromkeys(folded))
