"""The command that checks the table of a model family."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.utils import logging

from qat_lightning.commands.check_model.checks import run_checks
from qat_lightning.commands.check_model.tiny import make_batch, make_model, shrunk
from qat_lightning.config.allowed_targets import import_own
from qat_lightning.config.builders.pretrained import as_data, read_architecture
from qat_lightning.config.schema import ConfigError, ModelConfig
from qat_lightning.io.screen import console
from qat_lightning.models.families import FAMILIES, Family

MARKS = {"passed": "✓", "refused": "–", "absent": "·", "failed": "✗"}


def run_check(model: str, table: str, onnx: bool) -> None:
    """Print one line for each check of the family of `model`.

    Args:
        model: a model type of transformers, a folder with a config.json, or a hub id.
        table: the dotted path of a `Family` in a package that is allowed, for a type without a table or in place of its own;
            empty for none.
        onnx: whether the ONNX export is checked.

    Raises:
        ConfigError: no such model or table, a family without a table, or a check that fails.
    """
    config = _configuration(model)
    if table:
        FAMILIES[config.model_type] = _table(table)
    small = shrunk(config)
    logging.set_verbosity_error()
    failed, screen = 0, console()
    for result in run_checks(partial(make_model, small), partial(make_batch, small), onnx):
        failed += result.status == "failed"
        screen.print(
            f"{MARKS[result.status]} {result.check}" + (f": {result.reason}" if result.reason else ""), soft_wrap=True
        )
    if failed:
        raise ConfigError(
            f"the table of {config.model_type!r} fails {failed} of its checks: correct the rows named above"
        )


def _configuration(model: str) -> PretrainedConfig:
    if model in CONFIG_MAPPING and not Path(model).exists():
        return as_data(AutoConfig.for_model(model), f"model={model!r}")
    return read_architecture(ModelConfig(path=model), num_labels=2)


def _table(path: str) -> Family:
    found = import_own(path, f"table={path!r}")
    if not isinstance(found, Family):
        raise ConfigError(f"table={path!r} is a {type(found).__name__}: give a qat_lightning.models.families.Family")
    return found
