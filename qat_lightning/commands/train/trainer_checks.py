"""What only the installed libraries and this machine know to be wrong, asked before anything is written."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hydra.errors import InstantiationException
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from qat_lightning.config.builders.pretrained import as_data
from qat_lightning.config.builders.training import all_callbacks, build_logger, build_trainer, stage_names
from qat_lightning.config.instantiate import suggest
from qat_lightning.config.schema import ConfigError, ModelConfig, RunConfig
from qat_lightning.data.base import TaskData
from qat_lightning.training.stage import Stage

REFUSED = (MisconfigurationException, ModuleNotFoundError, RuntimeError, TypeError, ValueError)
"""What Lightning raises for arguments that do not go together."""

LOGGED_BY = {"AttentionAnalysis": "analysis/", "StepSizeHistory": "step_sizes/", "LearningRateMonitor": "lr-"}
"""Callbacks that log values of their own, which others can watch → how their names begin."""

ACTIVATIONS = {"hidden_act", "hidden_activation", "activation", "activation_function"}
"""What transformers' families call the name of their activation function."""

TUNING = {"LearningRateFinder": "optimizer.lr", "BatchSizeFinder": "data.batch_size"}
"""Callbacks that would decide what the configuration decides → by which key."""


def check_libraries(config: RunConfig, folder: Path) -> str:
    """Check the model's family and the trainer: its accelerator, its strategy, so many devices.

    Returns the precision that the trainer computes in, which need not be the one that was asked for.

    Raises:
        ConfigError: naming the key.
    """
    _check_family(config.model)
    try:
        return str(build_trainer(config, "teacher", 0, folder, record=False).precision)
    except REFUSED as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error


def check_stages(config: RunConfig, data: TaskData) -> None:
    """Each stage's trainer with all its callbacks, what they watch, and that some rows are validated on.

    Raises:
        ConfigError: naming the key.
    """
    _check_loggers(config)
    for stage in stage_names(config):
        _check_monitors(config, stage, data)
        trainer = _trainer(replace(config, logger={}), stage, data)
        share = config.trainer.limit_val_batches
        processes = trainer.num_devices * trainer.num_nodes
        for split, count in (("training", len(data.train_rows)), ("validation", len(data.validation_rows))):
            if count < processes:
                raise ConfigError(
                    f"trainer.devices and trainer.num_nodes make {processes} processes, and the {split} rows are {count}: give"
                    " fewer processes, or more rows"
                )
        rows = len(data.validation_rows) // processes
        batches = math.ceil(rows / data.evaluation_batch_size)
        if isinstance(share, float) and int(batches * share) == 0:
            raise ConfigError(
                f"trainer.limit_val_batches={share} of {batches} validation batches is none: give 1 for one batch, 1.0 for all"
            )


def _trainer(config: RunConfig, stage: str, data: TaskData) -> Trainer:
    """The stage's, made for a folder that is not kept."""
    with TemporaryDirectory() as folder:
        try:
            callbacks = all_callbacks(config, Stage(stage, Path(folder), {}), data)
            return build_trainer(config, stage, 0, Path(folder), callbacks)
        except ConfigError:
            raise
        except (*REFUSED, InstantiationException) as error:
            reason = error.__cause__ if isinstance(error, InstantiationException) else error
            names = ", ".join(f"callbacks.{name}" for name, node in config.callbacks.items() if node is not None)
            raise ConfigError(f"{names or 'trainer'}: {' '.join(str(reason).split())}") from error


def _check_loggers(config: RunConfig) -> None:
    """Make those that open nothing when they are made, and open those that write files alone, in a folder that is not kept.

    Raises:
        ConfigError: naming the key.
    """
    for name, node in config.logger.items():
        if node is None or node["_target_"].endswith(".CometLogger"):  # it begins an experiment when it is made
            continue
        with TemporaryDirectory() as folder:
            made = build_logger(config, name, "teacher", Path(folder))
            if not node.get("_partial_") or not isinstance(made, CSVLogger | TensorBoardLogger):
                continue
            try:
                made.log_metrics({"train/loss": 0.0}, 0)
                made.finalize("success")
            except Exception as error:  # whatever a logger raises for arguments that it hands on
                raise ConfigError(f"logger.{name}: {' '.join(str(error).split())}") from error


def _check_monitors(config: RunConfig, stage: str, data: TaskData) -> None:
    """A callback that watches a value that is not logged ends the run at the first validation."""
    if config.stage(stage).empty:
        return
    nodes = {name: node for name, node in config.callbacks.items() if node is not None}
    kinds = {node["_target_"].rpartition(".")[2] for node in nodes.values()}
    begin = tuple(start for kind, start in LOGGED_BY.items() if kind in kinds)
    logged = sorted(_logged(config, stage, data))
    for name, node in nodes.items():
        if key := TUNING.get(node["_target_"].rpartition(".")[2]):
            raise ConfigError(
                f"callbacks.{name} would change what the configuration decides: leave it out, and give {key}=…"
            )
        monitor = node.get("monitor")
        if monitor is None or not node.get("strict", True) or monitor in logged or monitor.startswith(begin):
            continue
        choices = suggest(monitor, [*logged, *(f"{start}…" for start in begin)])
        raise ConfigError(f"callbacks.{name}.monitor={monitor!r} is not logged in the {stage} stage: {choices}")


def _logged(config: RunConfig, stage: str, data: TaskData) -> Iterator[str]:
    """What can be watched from a stage's first validation on: the names that `QATModule` logs."""
    losses = {"task": {}} if stage == "teacher" else config.losses
    yield from ("lr", "train/loss")
    yield from (
        f"train/loss_{name}" for name, node in losses.items() if node is not None and node.get("weight", 1) != 0
    )
    yield from (f"val/{name}" for name in data.metrics)
    if stage == "intervene":
        yield from (f"val_assisted/{name}" for name in data.metrics)


def _check_family(model: ModelConfig) -> None:
    """An architecture that is given must be one: its family known, each field of the type and the value that it takes."""
    if model.pretrained or (model.path and (Path(model.path) / "config.json").is_file()):
        return
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModel
    from transformers.activations import ACT2FN

    families, kind = sorted(CONFIG_MAPPING.keys()), model.architecture.get("model_type")
    if kind not in families:
        near = difflib.get_close_matches(str(kind), families, n=3) or ["bert", "gpt2", "llama", "vit"]
        raise ConfigError(
            f"model.architecture.model_type={kind!r} is no family that transformers knows: give {', '.join(near)} or"
            f" another of its {len(families)}"
        )
    for field in ACTIVATIONS & model.architecture.keys():
        if (named := model.architecture[field]) not in ACT2FN:
            raise ConfigError(f"model.architecture.{field}={named!r} is unknown: {suggest(str(named), ACT2FN)}")
    try:
        architecture = as_data(AutoConfig.for_model(**model.architecture, num_labels=2), "model.architecture")
        with torch.device("meta"):
            AutoModel.from_config(architecture, trust_remote_code=False)
    except ConfigError:
        raise
    except Exception as error:  # whatever a family raises for a field of its own
        raise ConfigError(f"model.architecture: {type(error).__name__}: {' '.join(str(error).split())}") from error
