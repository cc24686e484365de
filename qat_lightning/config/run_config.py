"""Read the configuration of a finished or interrupted run, with overrides."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from qat_lightning.config.instantiate import suggest
from qat_lightning.config.schema import ConfigError, Plain, RunConfig, resolve
from qat_lightning.config.validation import check
from qat_lightning.io.documents import read_yaml_text
from qat_lightning.io.files import check_plain

ONE_PROCESS: Plain = {
    "trainer.devices": 1, "trainer.num_nodes": 1, "trainer.strategy": "auto", "trainer.profiler": None,
    "data.num_workers": 0, "teacher_cache": None,
}  # fmt: skip
"""Values for scoring and exporting. The configuration of a folder cannot request more; a typed override can."""


def read_run(folder: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read `config.yaml` of a run folder, with overrides (key=value), typed and checked as for a new run.

    Raises ConfigError for no run folder, or an override of a key that the run does not have, and SpecialFileError.
    """
    check_plain(folder)
    place = folder / "config.yaml"
    if not place.is_file():
        raise ConfigError(f"run={str(folder)!r} holds no config.yaml: give the folder of a run")
    config = OmegaConf.merge(OmegaConf.structured(RunConfig), read_foreign(place))
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        OmegaConf.update(config, _key(config, override), override.value(), merge=False)
    made = resolve(config)  # type: ignore[arg-type]
    _check_trust(made, {override.split("=", 1)[0] for override in overrides}, place)
    check(made)
    return made


def read_foreign(place: Path) -> DictConfig:
    """Read a configuration as `run` writes it, which another person may have changed, before anything is made of it.

    Interpolations are refused, since `${oc.env:…}` would read the environment of the user who opens the folder, and so are
    tags, unknown keys and what exceeds the limits (ConfigError).
    """
    try:
        text, content = read_yaml_text(place)
        if not isinstance(content, dict):
            raise ValueError("it is not a mapping")
        if found := next((value for value in _texts(content) if "${" in value), None):
            raise ValueError(f"it holds the interpolation {found!r}: write its value")
        config = cast(DictConfig, OmegaConf.create(text))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{str(place)!r} is not the configuration of a run: {reason}") from error
    known = [field.name for field in fields(RunConfig)]
    if unknown := [str(name) for name in config if name not in known]:
        raise ConfigError(f"{str(place)!r} has the key {unknown[0]!r}, which no run has: {suggest(unknown[0], known)}")
    return config


def located(config: RunConfig, overrides: Sequence[str] = ()) -> RunConfig:
    """Make folders absolute that exist only relative to the directory in which the run was started.

    Those of `overrides` (key=value) are relative to the current directory.
    """
    started = Path(config.working_directory or "")
    found = copy.deepcopy(config)
    for key in {"model.path", "data.path", "data.tokenizer"} - {override.split("=", 1)[0] for override in overrides}:
        group, _, name = key.partition(".")
        settings = vars(found.model) if group == "model" else found.data
        place = settings.get(name)
        if isinstance(place, str) and not Path(place).exists() and (started / place).exists():
            settings[name] = str(started / place)
    return found


def in_one_process(config: RunConfig, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration of a run folder without the processes, devices and workers that it requests.

    Values that `overrides` (key=value) type stay.
    """
    typed, limited = {override.split("=", 1)[0] for override in overrides}, copy.deepcopy(config)
    for key, value in ONE_PROCESS.items():
        group, _, name = key.rpartition(".")
        settings = limited.data if group == "data" else vars(limited.trainer if group else limited)
        if key not in typed and name in settings:
            settings[name] = value
    if "threads" not in typed and limited.threads is not None:
        limited.threads = min(limited.threads, os.cpu_count() or 1)
    return limited


def needed_places(config: RunConfig) -> dict[str, str]:
    """Return key → hub id or folder of everything that must exist before a run begins."""
    needed = {"data.path": config.data.get("path")}
    if config.model.pretrained:
        needed["model.path"] = config.model.path
    if config.data.get("tokenizer") != needed.get("model.path"):
        needed["data.tokenizer"] = config.data.get("tokenizer")
    return {override: place for override, place in needed.items() if place is not None}


def _texts(node: Any) -> Iterator[str]:
    """Yield every text, keys included."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, list | dict):
        for part in node if isinstance(node, list) else [*node, *node.values()]:
            yield from _texts(part)


def _key(config: Any, override: Override) -> str:
    """Return the key of an override, which the run must have."""
    if override.is_add() or override.is_delete() or override.is_sweep_override() or override.package is not None:
        raise ConfigError(f"{override.input_line!r}: give key=value, with a key that the run has")
    full = key = override.key_or_group
    parent = key.rpartition(".")[0]
    node = OmegaConf.select(config, parent) if parent else config
    while not OmegaConf.is_dict(node):  # name the first part that is wrong
        key, parent = parent, parent.rpartition(".")[0]
        node = OmegaConf.select(config, parent) if parent else config
    if key.rpartition(".")[2] not in node:
        choices = [f"{parent}.{name!s}" if parent else str(name) for name in node]
        raise ConfigError(f"{key} is not a key of this run: {suggest(key, choices)}")
    if key != full:
        raise ConfigError(f"{full} is not a key of this run: {key} holds no keys, give {key}=… as a whole")
    return key


def _check_trust(config: RunConfig, typed: set[str], place: Path) -> None:
    """Refuse a flag that trusts files of others unless it is typed: the flag of a folder does not count."""
    needed = {"trust_remote_code": ("trust_remote_code", "revision"), "pickled_weights": ("pickled_weights",)}
    for flag, names in needed.items():
        if getattr(config.model, flag) and (missing := [name for name in names if f"model.{name}" not in typed]):
            again = " ".join(f"model.{name}={getattr(config.model, name)}" for name in missing)
            raise ConfigError(
                f"{place} has model.{flag}=true for model.path={config.model.path!r}; the author of the folder"
                f" set it: if you trust both, add to this command {again}"
            )
