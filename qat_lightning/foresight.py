"""What only the installed libraries and this machine know to be wrong, asked before anything is written."""

from __future__ import annotations

import difflib
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from qat_lightning.build import build_trainer
from qat_lightning.config import ConfigError, Plain


def check_libraries(config: Plain, folder: Path) -> None:
    """The model's family and the trainer: its accelerator, its strategy, so many devices.

    Raises:
        ConfigError: naming the key.
    """
    _check_family(config["model"])
    try:
        build_trainer(config, "teacher", 0, folder, record=False)
    except (MisconfigurationException, ModuleNotFoundError, TypeError, ValueError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error


def _check_family(model: Plain) -> None:
    if model["pretrained"]:
        return
    from transformers import CONFIG_MAPPING

    families, kind = sorted(CONFIG_MAPPING.keys()), model["architecture"].get("model_type")
    if kind not in families:
        near = difflib.get_close_matches(str(kind), families, n=3) or ["bert", "gpt2", "llama", "vit"]
        raise ConfigError(
            f"model.architecture.model_type={kind!r} is no family that transformers knows: give {', '.join(near)} or"
            f" another of its {len(families)}"
        )
