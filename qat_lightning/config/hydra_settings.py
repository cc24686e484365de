"""Protect Hydra's own settings: they come from Hydra, this package and the command line, not from other configuration folders.

Hydra applies them before it calls this package: callbacks and logging factories run the functions that they name,
`job.env_set` changes the environment, a search path imports packages, and a launcher or sweeper can be of any class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra._internal import hydra as hydra_internal
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from qat_lightning.config.allowed_targets import KEY
from qat_lightning.config.schema import CONF, ConfigError

FREE = (
    "run.dir", "sweep.dir", "sweep.subdir", "sweeper.direction", "sweeper.n_trials",
    "sweeper.max_batch_size", "mode", "verbose", "help", "hydra_help", "searchpath",
    "runtime", "overrides", "job.config_name", "job.override_dirname",
)  # fmt: skip
"""Keys below `hydra` that any configuration can set, and (last line) that Hydra itself records."""


@contextmanager
def guarded_hydra() -> Iterator[None]:
    """Make `hydra.main` compose with `GuardedLoader` within the block."""
    before = hydra_internal.ConfigLoaderImpl
    hydra_internal.ConfigLoaderImpl = GuardedLoader  # type: ignore[misc]
    try:
        yield
    finally:
        hydra_internal.ConfigLoaderImpl = before  # type: ignore[misc]


def check_flags(arguments: Sequence[str]) -> None:
    """Raise ConfigError for the Hydra flag that reads a pickle."""
    given, _ = get_args_parser().parse_known_args(list(arguments))
    if given.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun reads a pickle, which can run any command: give hydra.run.dir=DIR")


class GuardedLoader(ConfigLoaderImpl):
    """Hydra's loader, which refuses settings of Hydra from other configuration folders.

    It is a class because a sweep composes each job, with some launchers in another process.
    """

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        typed = [argument for argument in overrides if _key(argument).startswith(("hydra.", "hydra/"))]
        searched = any(_key(argument) == "hydra.searchpath" for argument in typed)
        path = self.config_search_path.get_path()
        foreign = searched or any(
            element.provider == "command-line"
            or (
                element.provider == "main"
                and Path(str(element.path).removeprefix("file://")).resolve() != CONF.resolve()
            )
            for element in path
        )
        if foreign and not searched and config_name:
            # before composition, which would import a package that a search path names
            primary = self.repository.load_config(config_name)
            if primary is not None and OmegaConf.select(primary.config, "hydra.searchpath") is not None:
                raise _refused("searchpath")
        config = super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        if foreign:
            given = config.hydra.overrides  # Hydra appends the command line to it
            if list(given.hydra) != typed or list(given.task) != [
                argument for argument in overrides if argument not in typed
            ]:
                raise _refused("overrides")
            trusted = list(_trusted(config_name, typed, run_mode))
            _compare(OmegaConf.to_container(config.hydra, resolve=False), trusted, "")
        return config


def _trusted(config_name: str | None, typed: list[str], run_mode: RunMode) -> Iterator[Any]:
    """Yield `hydra` composed of the command line with this package's configuration, and with Hydra's defaults."""
    loader = ConfigLoaderImpl(create_config_search_path(f"file://{CONF}"))
    arguments = [argument for argument in typed if _key(argument) != "hydra.searchpath"]
    own = config_name if config_name and (CONF / f"{config_name}.yaml").is_file() else "config"
    for name in (own, None):
        with suppress(ConfigCompositionException):  # a typed option can be one of the other folder
            composed = loader.load_configuration(name, arguments, run_mode, validate_sweep_overrides=False)
            yield OmegaConf.to_container(composed.hydra, resolve=False)


def _compare(node: Any, trusted: list[Any], key: str) -> None:
    """Check that every protected value below `hydra` equals the value of a trusted composition."""
    if key in FREE or any(node == other for other in trusted):
        return
    if key == "sweeper.params" and isinstance(node, dict):  # overrides of each job, as if they were typed
        for argument in node:
            if _key(f"{argument}=0").startswith(("hydra.", "hydra/", KEY)):
                raise _refused(f"{key}.{argument}")
        return
    if not isinstance(node, dict) or not any(isinstance(other, dict) for other in trusted):
        raise _refused(key)
    for name, child in node.items():
        below = f"{key}.{name}" if key else str(name)
        _compare(child, [other[name] for other in trusted if isinstance(other, dict) and name in other], below)


def _refused(key: str) -> ConfigError:
    return ConfigError(
        f"hydra.{key} is set by a configuration from --config-dir, --config-path or hydra.searchpath, and Hydra would"
        " apply it before any check: remove it there, or give it in this command"
    )


def _key(argument: str) -> str:
    return OverridesParser.create().parse_override(argument).key_or_group
