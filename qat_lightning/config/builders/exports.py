"""Configuration → export formats."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from qat_lightning.config.allowed_targets import locate
from qat_lightning.config.instantiate import check_targets, create
from qat_lightning.config.schema import ConfigError, RunConfig
from qat_lightning.config.validation import quantizer_nodes
from qat_lightning.exporters.base import ExportFormat

RESERVED = ("metric", "float32", "classes", "versions")
"""Keys of export/metrics.json that cannot name a format."""


def build_formats(config: RunConfig) -> dict[str, ExportFormat]:
    """All formats of `export.formats`, also those that the run does not write.

    A constructor gets `unquantized_dtype`, `ternary_encoding`, `threads` and `quantizers` (the classes that the run's rules
    name) if it accepts them and its node does not set them.
    """
    offered = {
        "unquantized_dtype": config.export.unquantized_dtype.name,
        "ternary_encoding": config.export.ternary_encoding.name,
        "quantizers": [locate(node["_target_"], key) for key, node in quantizer_nodes(config.quantization)],
        "threads": config.threads,
    }
    return {name: _build(name, node, offered) for name, node in config.export.formats.items() if node is not None}


def is_chosen(config: RunConfig, name: str) -> bool:
    """Tell whether the run writes that format: `export.packed` and `export.onnx` are switches, any other format is written."""
    return bool(getattr(config.export, name, True))


def switch(name: str, on: bool) -> str:
    """The override that makes a run write a format, or leave it out."""
    if name in ("packed", "onnx"):
        return f"export.{name}={'true' if on else 'false'}"
    return "" if on else f"export.formats.{name}=null"


def unsupported_formats(config: RunConfig, student: nn.Module) -> dict[str, str]:
    """Chosen format → the reason why it cannot write the student."""
    reasons = {
        name: export_format.supports(student)
        for name, export_format in build_formats(config).items()
        if is_chosen(config, name)
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _build(name: str, node: Any, offered: dict[str, Any]) -> ExportFormat:
    key = f"export.formats.{name}"
    if name in RESERVED:
        raise ConfigError(f"{key}: {name} is a key of export/metrics.json: choose another name")
    check_targets(node, key, offered)
    parameters = inspect.signature(locate(node["_target_"], key)).parameters
    given = {argument: value for argument, value in offered.items() if argument in parameters and argument not in node}
    made: ExportFormat = create(node, key, **given)
    return made
