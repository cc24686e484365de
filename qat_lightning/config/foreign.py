"""YAML that somebody else may have written: plain values, looked at before anything is made of them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import cast

import yaml
from omegaconf import DictConfig, OmegaConf

from qat_lightning.config.schema import ConfigError, RunConfig
from qat_lightning.config.targets import suggest

LARGEST, MOST = 2**20, 20_000
"""Bytes, and values once every alias is written out; a composed configuration has some 20 kB and 500 values."""

PLAIN = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null"))


def read_foreign(place: Path) -> DictConfig:
    """The configuration in a file, as `run` writes it: keys of `RunConfig`, nothing that is still to be resolved.

    Interpolations are refused, since `${oc.env:…}` would read the environment of whoever opens the folder.

    Raises:
        ConfigError: no such YAML; a tag, an interpolation, or a key that no run has; far too much of it.
    """
    try:
        if place.stat().st_size > LARGEST:
            raise ValueError(f"it is larger than {LARGEST} bytes")
        text = place.read_text(encoding="utf-8")
        _check_nodes(yaml.compose(text, Loader=yaml.SafeLoader))
        config = cast(DictConfig, OmegaConf.create(text))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{str(place)!r} is no configuration of a run: {' '.join(str(error).split())}") from error
    known = [field.name for field in fields(RunConfig)]
    for name in config:
        if name not in known:
            raise ConfigError(f"{str(place)!r} has the key {name!r}, which no run has: {suggest(str(name), known)}")
    return config


def _check_nodes(root: yaml.Node | None) -> None:
    """Every node is plain, aliases written out; without recursion, so that no depth is too much."""
    if not isinstance(root, yaml.MappingNode):
        raise ValueError("it holds no keys")
    left, seen = [root], 0
    while left:
        node, seen = left.pop(), seen + 1
        if seen > MOST:
            raise ValueError(f"it holds more than {MOST} values")
        if node.tag not in PLAIN:
            raise ValueError(f"line {node.start_mark.line + 1} has the tag {node.tag!r}: only plain values are read")
        if isinstance(node, yaml.ScalarNode) and "${" in node.value:
            raise ValueError(f"line {node.start_mark.line + 1} holds the interpolation {node.value!r}: write its value")
        if isinstance(node, yaml.SequenceNode):
            left += node.value
        if isinstance(node, yaml.MappingNode):
            left += [part for pair in node.value for part in pair]
