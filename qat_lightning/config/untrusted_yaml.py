"""Read the configuration of a run folder, which another person may have written, before anything is made of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf

from qat_lightning.config.instantiate import suggest
from qat_lightning.config.schema import ConfigError, RunConfig
from qat_lightning.io.documents import read_yaml_text


def read_foreign(place: Path) -> DictConfig:
    """Read a configuration as `run` writes it: keys of `RunConfig`, no interpolations.

    Interpolations are refused, since `${oc.env:…}` would read the environment of the user who opens the folder.

    Raises:
        ConfigError: the file is not such YAML, holds a tag, an interpolation or an unknown key, or exceeds the limits.
    """
    try:
        text, content = read_yaml_text(place)
        if not isinstance(content, dict):
            raise ValueError("it is not a mapping")
        if found := next((value for value in _texts(content) if "${" in value), None):
            raise ValueError(f"it holds the interpolation {found!r}: write its value")
        config = cast(DictConfig, OmegaConf.create(text))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{str(place)!r} is not the configuration of a run: {' '.join(str(error).split())}"
        ) from error
    known = [field.name for field in fields(RunConfig)]
    for name in config:
        if name not in known:
            raise ConfigError(f"{str(place)!r} has the key {name!r}, which no run has: {suggest(str(name), known)}")
    return config


def _texts(node: Any) -> Iterator[str]:
    """Yield every text, keys included."""
    if isinstance(node, str):
        yield node
    if isinstance(node, list):
        for child in node:
            yield from _texts(child)
    if isinstance(node, dict):
        for pair in node.items():
            for part in pair:
                yield from _texts(part)
