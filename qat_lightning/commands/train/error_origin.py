"""Which configured callback, logger or optimizer of another library an error comes from."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hydra.utils import get_object
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from qat_lightning.config.schema import ConfigError, RunConfig
from qat_lightning.io.external_errors import explain, one_line

OWN = "qat_lightning."


@contextmanager
def key_in_errors(config: RunConfig) -> Iterator[None]:
    """Raise an error of another library's object again as a ConfigError with the object's key.

    A constructor that takes every argument leaves it to the first use to refuse one. What the world does (a full disk, no
    memory), and what this package raises, passes as it is.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        world = explain(error) and not isinstance(error, MisconfigurationException)
        key = None if world else _key(error, _classes(config))
        if key is None:
            raise
        raise ConfigError(f"{key} cannot work with its arguments: {type(error).__name__}: {one_line(error)}") from error


def _classes(config: RunConfig) -> dict[type, str]:
    """The classes of other libraries that are configured → their keys."""
    nodes = {"optimizer": config.optimizer}
    for group in ("callbacks", "logger"):
        nodes |= {f"{group}.{name}": node for name, node in getattr(config, group).items() if node is not None}
    return {get_object(node["_target_"]): key for key, node in nodes.items() if not node["_target_"].startswith(OWN)}


def _key(error: BaseException, classes: Mapping[type, str]) -> str | None:
    """The key of the innermost object that was at work; None where this package was, on its behalf."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        if frame.f_globals.get("__name__", "").startswith(OWN):
            return None
        at_work: Any = frame.f_locals.get("self")
        if type(at_work) in classes:
            return classes[type(at_work)]
    return None
