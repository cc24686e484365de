"""Hydra's own settings come from Hydra, this package and the command line; a stranger's configuration cannot change them.

Hydra acts on them before it calls anything of this package: callbacks and the factories of logging run what they name,
`job.env_set` changes the environment, a search path imports packages, a launcher or sweeper is an object of any class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
"""Below `hydra`: what a configuration may say, and (last line) what Hydra itself records."""

SWEPT = "sweeper.params"
"""What each job of a sweep is given, as if it were typed; free as far as it is nothing of `hydra`."""


@contextmanager
def guarded_hydra() -> Iterator[None]:
    """Within the block, `hydra.main` composes with `GuardedLoader`."""
    before = hydra_internal.ConfigLoaderImpl
    hydra_internal.ConfigLoaderImpl = GuardedLoader  # type: ignore[misc]
    try:
        yield
    finally:
        hydra_internal.ConfigLoaderImpl = before  # type: ignore[misc]


def check_flags(words: Sequence[str]) -> None:
    """Raise ConfigError for the flag of Hydra's that reads a pickle."""
    given, _ = get_args_parser().parse_known_args(list(words))
    if given.experimental_rerun is not None:
        raise ConfigError(
            f"--experimental-rerun={given.experimental_rerun} reads a pickle, which can run any command: give the run's own"
            " command again, with hydra.run.dir=DIR to continue in its folder"
        )


class GuardedLoader(ConfigLoaderImpl):
    """Hydra's loader; where other folders take part, what they say of Hydra's own settings is refused.

    A class, and not a check around one call, as a sweep composes each job, with some launchers in another process.
    """

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        typed = [word for word in overrides if _key(word).startswith(("hydra.", "hydra/"))]
        searched = any(_key(word) == "hydra.searchpath" for word in typed)
        foreign = searched or self._is_foreign()
        if foreign and not searched:
            self._check_search_path(config_name)
        config = super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        if foreign:
            given = config.hydra.overrides  # Hydra appends the command line to what is there
            if list(given.hydra) != typed or list(given.task) != [word for word in overrides if word not in typed]:
                raise _refused("overrides")
            trusted = list(_trusted(config_name, typed, run_mode))
            _compare(OmegaConf.to_container(config.hydra, resolve=False), trusted, "")
        return config

    def _is_foreign(self) -> bool:
        path = self.config_search_path.get_path()
        main = [element.path for element in path if element.provider == "main"]
        given = any(element.provider == "command-line" for element in path)
        return given or any(Path(str(place).removeprefix("file://")).resolve() != CONF.resolve() for place in main)

    def _check_search_path(self, config_name: str | None) -> None:
        """Before anything is composed: a search path can name a package, which is then imported."""
        primary = self.repository.load_config(config_name) if config_name else None
        if primary is not None and OmegaConf.select(primary.config, "hydra.searchpath") is not None:
            raise _refused("searchpath")


def _trusted(config_name: str | None, typed: list[str], run_mode: RunMode) -> Iterator[Any]:
    """`hydra` as this package's configuration and the command line make it, and as Hydra and the command line do."""
    loader = ConfigLoaderImpl(create_config_search_path(f"file://{CONF}"))
    words = [word for word in typed if _key(word) != "hydra.searchpath"]
    own = config_name if config_name and (CONF / f"{config_name}.yaml").is_file() else "config"
    for name in (own, None):
        with suppress(ConfigCompositionException):  # what is typed can be an option of the other folder
            composed = loader.load_configuration(name, words, run_mode, validate_sweep_overrides=False)
            yield OmegaConf.to_container(composed.hydra, resolve=False)


def _compare(node: Any, trusted: list[Any], key: str) -> None:
    """Every value below `hydra` that is not free is as one of the trusted compositions has it."""
    if key in FREE or any(node == other for other in trusted):
        return
    if key == SWEPT and isinstance(node, dict):
        _check_swept(node)
        return
    if not isinstance(node, dict) or not any(isinstance(other, dict) for other in trusted):
        raise _refused(key)
    for name, child in node.items():
        below = f"{key}.{name}" if key else str(name)
        _compare(child, [other[name] for other in trusted if isinstance(other, dict) and name in other], below)


def _check_swept(words: Iterable[str]) -> None:
    for word in words:
        if _key(f"{word}=0").startswith(("hydra.", "hydra/", KEY)):
            raise _refused(f"{SWEPT}.{word}")


def _refused(key: str) -> ConfigError:
    return ConfigError(
        f"hydra.{key} is set by a configuration from --config-dir, --config-path or hydra.searchpath, and Hydra would act on"
        " it before anything is checked: remove it there; if you want it, give it in this command"
    )


def _key(word: str) -> str:
    return OverridesParser.create().parse_override(word).key_or_group
