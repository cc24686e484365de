"""Describe a student's quantizers and losses by what these objects say of themselves, for metrics.json."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from qat_lightning.models.module_paths import attention_paths, part_kind, part_paths
from qat_lightning.quantization.modules.attention import InstrumentedAttention
from qat_lightning.quantization.quantizers.base import Quantizer

PROPERTIES = ("kind", "source", "bits", "scale", "granularity", "group_size", "clip")
Row = dict[str, Any]


def describe_quantizers(student: nn.Module) -> list[Row]:
    """Return a row for each different quantizer: the tensor that it quantizes, the parts, kind, bits, levels, scale, clip.

    Layers that agree share a row; quantizers that differ from layer to layer name their layers.
    """
    rows: dict[tuple[Any, ...], list[str]] = {}
    for tensor, part, quantizer in _quantizers(student):
        properties = {name: getattr(quantizer, name, None) for name in PROPERTIES} | {"levels": quantizer.levels()}
        rows.setdefault((tensor, *properties.items()), []).append(part)
    parts: dict[tuple[str, str], int] = {}
    for key, names in rows.items():
        for kind in {part_kind(name) for name in names}:
            parts[key[0], kind] = parts.get((key[0], kind), 0) + 1
    return [
        {"tensor": key[0], "parts": _fold(names, lambda kind, tensor=key[0]: parts[tensor, kind] > 1), **dict(key[1:])}
        for key, names in rows.items()
    ]


def _fold(names: list[str], differs: Any) -> list[str]:
    """Replace names of layers by the kind of part, except for kinds whose layers differ: layers.0-3,11.attention.query."""
    layers: dict[str, list[int]] = {}
    for name in names:
        layers.setdefault(part_kind(name), []).extend(map(int, re.findall(r"^layers\.(\d+)\.", name)))
    return [f"layers.{ranges(own)}.{kind}" if own and differs(kind) else kind for kind, own in layers.items()]


def ranges(numbers: list[int]) -> str:
    """Abbreviate consecutive numbers: 0, 1, 2, 5 → "0-2,5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _quantizers(student: nn.Module) -> Iterator[tuple[str, str, Quantizer]]:
    """Yield (tensor, part, quantizer) of weights, inputs and attention operands."""
    for tensor in ("weight", "input"):
        for part, path in part_paths(student).items():
            quantizer = getattr(student.get_submodule(path), f"{tensor}_quantizer", None)
            if isinstance(quantizer, Quantizer):
                yield f"{tensor}s", part, quantizer
    for index, path in enumerate(attention_paths(student)):
        core = getattr(student.get_submodule(path), "core", None)
        for operand in InstrumentedAttention.QUANTIZED:
            if isinstance(quantizer := getattr(core, f"{operand}_quantizer", None), Quantizer):
                yield "attention", f"layers.{index}.{operand}", quantizer


def describe_losses(losses: Mapping[str, Any]) -> dict[str, Row]:
    """Return name → class, first line of its documentation, papers, sites, settings and weight of each loss with a weight.

    The losses that a loss contains follow it as `name.attribute`.
    """
    described: dict[str, Row] = {}
    for name, loss in losses.items():
        if getattr(loss, "weight", 1.0) == 0:
            continue
        documentation = inspect.getdoc(loss if inspect.isfunction(loss) else type(loss)) or ""
        values = vars(loss) if hasattr(loss, "__dict__") else {}
        described[name] = {
            "class": getattr(loss, "__name__", type(loss).__name__),
            "what": documentation.split("\n", 1)[0],
            "papers": sorted(set(re.findall(r"\b\d{4}\.\d{5}\b", documentation))),
            "sites": list(getattr(loss, "sites", ())),
            "settings": {  # arguments that a card can print; `layers` is a list of pairs
                key: value
                for key, value in values.items()
                if key not in ("weight", "sites", "site")
                and value is not None
                and (key == "layers" or isinstance(value, str | int | float))
            },
            "weight": getattr(loss, "weight", 1.0),
        }
        described |= describe_losses({f"{name}.{key}": part for key, part in values.items() if hasattr(part, "sites")})
    return described
