"""What a case is: an input, what a user does with it, and what is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from qat_lightning.config.builders.models import load_data
from qat_lightning.config.schema import CONF, Plain, resolve
from qat_lightning.config.validation import check
from qat_lightning.data.base import TaskData


@dataclass(frozen=True)
class Case:
    """`make` writes the input into an empty folder; what `read` returns of the folder is `value`, or it is `refused`.

    Args:
        refused: the message, as a pattern.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    value: Any = None
    refused: str = ""


def composed(folder: Path, *words: str) -> Plain:
    """Return the configuration of a command on the data in `folder`, checked."""
    given = (f"data.path={folder}", "trainer.accelerator=cpu", "threads=1")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = resolve(compose("config", overrides=[*given, *words]))
    check(config)
    return config


def loaded(folder: Path, *words: str) -> TaskData:
    """Return the data of a command, read."""
    return load_data(composed(folder, *words))
