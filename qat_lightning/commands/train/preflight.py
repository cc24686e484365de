"""Checks before anything is trained or written, in order of cost: libraries, data against model, two rows through all."""

from __future__ import annotations

import copy
import difflib
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hydra.errors import InstantiationException
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from qat_lightning.commands.train.bit_budget import check_budget
from qat_lightning.commands.train.pipeline import Run
from qat_lightning.config.builders.exports import unsupported_formats
from qat_lightning.config.builders.models import build_quantized
from qat_lightning.config.builders.pretrained import as_data
from qat_lightning.config.builders.training import build_logger
from qat_lightning.config.instantiate import suggest
from qat_lightning.config.schema import ConfigError, ModelConfig, RunConfig
from qat_lightning.data.base import TaskData
from qat_lightning.data.tokenizers import read_tokenizer
from qat_lightning.distillation.intervention import Intervention
from qat_lightning.distillation.step import check_visible
from qat_lightning.io.external_errors import one_line
from qat_lightning.models.capture import SignalCapture, Signals
from qat_lightning.models.convert import open_attention_for
from qat_lightning.models.module_paths import family, layer_config, part_paths
from qat_lightning.models.quantized_model import switch_on
from qat_lightning.training.compatibility import label_names, other_order

REFUSED = (MisconfigurationException, ModuleNotFoundError, RuntimeError, TypeError, ValueError)
"""The errors of Lightning for arguments that cannot be combined."""

LOGGED_BY = {"AttentionAnalysis": "analysis/", "StepSizeHistory": "step_sizes/", "LearningRateMonitor": "lr-"}
"""Callbacks that log values of their own, which others can watch → how their names begin."""

ACTIVATIONS = {"hidden_act", "hidden_activation", "activation", "activation_function"}
"""Names of the activation function in the configurations of transformers' families."""

TUNING = {"LearningRateFinder": "optimizer.lr", "BatchSizeFinder": "data.batch_size"}
"""Callbacks that would decide what the configuration decides → by which key."""


def check_libraries(run: Run) -> None:
    """Check the model's family and the trainer (accelerator, strategy, devices), and record the trainer's precision."""
    _check_family(run.scoring.model)
    try:
        run.take_precision()
    except REFUSED as error:
        raise ConfigError(f"trainer: {one_line(error)}") from error


def preflight(run: Run, teacher: nn.Module) -> None:
    """Run all `CHECKS` in order; raise ValueError for the first problem, with the key to change. `run.parts` are built.

    Nothing is written, no random number is drawn, and `teacher`, which is not fine-tuned yet, stays as it is.
    """
    for check in CHECKS.values():
        check(run, teacher)


def _check_parts(run: Run, teacher: nn.Module) -> None:
    """Build the trainer and the callbacks of each stage."""
    try:
        run.build_parts()
    except ConfigError:
        raise
    except (*REFUSED, InstantiationException) as error:
        reason = error.__cause__ or error if isinstance(error, InstantiationException) else error
        names = ", ".join(f"callbacks.{name}" for name, node in run.config.callbacks.items() if node is not None)
        raise ConfigError(f"{names or 'trainer'}: {one_line(reason)}") from error


def _check_loggers(run: Run, teacher: nn.Module) -> None:
    """Make the loggers that open nothing when they are made, and let those that only write files write one line."""
    for name, node in run.config.logger.items():
        if node is None or node["_target_"].endswith(".CometLogger"):  # begins an experiment when it is made
            continue
        with TemporaryDirectory() as folder:
            made = build_logger(run.config, name, "teacher", Path(folder))
            if not node.get("_partial_") or not isinstance(made, CSVLogger | TensorBoardLogger):
                continue
            try:
                made.log_metrics({"train/loss": 0.0}, 0)
                made.finalize("success")
            except Exception as error:  # any error of a logger's library
                raise ConfigError(f"logger.{name}: {one_line(error)}") from error


def _check_processes(run: Run, teacher: nn.Module) -> None:
    """Check that each process has rows, and that `limit_val_batches` leaves a batch."""
    data, share = run.data, run.config.trainer.limit_val_batches
    for split, count in (("training", len(data.train_rows)), ("validation", len(data.validation_rows))):
        if count < run.processes:
            raise ConfigError(
                f"trainer.devices and trainer.num_nodes make {run.processes} processes, and the {split} rows are {count}:"
                " give fewer processes, or more rows"
            )
    batches = math.ceil(len(data.validation_rows) // run.processes / data.evaluation_batch_size)
    if isinstance(share, float) and int(batches * share) == 0:
        raise ConfigError(f"trainer.limit_val_batches={share} of {batches} batches is none: give 1 for one, or 1.0")


def _check_two_rows(run: Run, teacher: nn.Module) -> None:
    """Quantize a copy of the teacher; compute every metric, loss and gradient on a few rows under every intervention.

    A format that cannot write the student is named, and the run continues.
    """
    copied = copy.deepcopy(teacher).eval()
    _check_metrics(run.data, copied)
    losses = {name: loss for name, loss in run.objective.losses.items() if loss.weight != 0}
    interventions = list(run.objective.interventions.values())
    check_visible({site for intervention in interventions for site in intervention.sites}, losses)
    for name, intervention in run.objective.interventions.items():
        try:
            intervention.check(copied)
        except ValueError as error:
            raise ConfigError(f"intervention.{name}: {error}") from error
    batch, sites = run.data.calibration_batches(2)[0], run.objective.sites
    with torch.no_grad():
        taught = SignalCapture(open_attention_for(copied, sites), sorted(sites))(batch)
    student = build_quantized(run.config, copied)
    unsupported = unsupported_formats(run.config, student)
    switch_on(student, run.config.stages.intervene.target_modules)
    capture = SignalCapture(student, sorted({site for loss in losses.values() for site in loss.sites}))
    for intervention in [Intervention(), *interventions]:
        with torch.enable_grad(), intervention.apply(student, taught):
            signals = capture(batch)
            terms = [_term(name, loss, signals, taught, batch) for name, loss in losses.items()]
            torch.stack(terms).sum().backward()
    for name, reason in unsupported.items():
        run.say(f"export.{name}", f"will not be written: {reason}")


def _check_metrics(data: TaskData, model: nn.Module) -> None:
    """Check that each metric takes the model's predictions and returns one number."""
    batch = data.example_batch(8)
    with torch.no_grad():
        logits = [each.float() for each in SignalCapture(model)(batch)["logits"]]
    answers = data.predict(logits, batch)
    for name, metric in copy.deepcopy(data.metrics).items():
        try:
            with warnings.catch_warnings(action="ignore"):  # metrics warn of so few rows
                metric.update(*answers)
                score = metric.compute()
        except (ValueError, RuntimeError, TypeError) as error:
            raise ConfigError(f"data.metrics.{name}: {one_line(error)}") from error
        if not isinstance(score, Tensor) or score.numel() != 1:
            raise ConfigError(f"data.metrics.{name} gives {score} and must give one number: set average=macro or micro")


def _term(name: str, loss: Any, student: Signals, teacher: Signals, batch: Any) -> Tensor:
    try:
        term: Tensor = loss.weight * loss(student, teacher, batch)
    except ValueError as error:
        raise ConfigError(f"losses.{name}: {error}") from error
    if not math.isfinite(value := float(term.detach())):
        raise ConfigError(f"losses.{name} is {value} for two rows of the data: check its arguments and the weights")
    return term


def _check_monitors(run: Run, teacher: nn.Module) -> None:
    """Refuse a callback whose `monitor` is not logged in each stage, and callbacks that tune what is configured."""
    config = run.config
    nodes = {name: node for name, node in config.callbacks.items() if node is not None}
    kinds = {node["_target_"].rpartition(".")[2] for node in nodes.values()}
    begin = tuple(start for kind, start in LOGGED_BY.items() if kind in kinds)
    for name, node in nodes.items():
        if key := TUNING.get(node["_target_"].rpartition(".")[2]):
            raise ConfigError(f"callbacks.{name} would change the configuration: leave it out, and give {key}=…")
        if (monitor := node.get("monitor")) is None or not node.get("strict", True) or monitor.startswith(begin):
            continue
        for stage in run.stages:
            logged = sorted(logged_names(config, stage, run.data))
            if monitor not in logged and not config.stage(stage).empty:
                choices = suggest(monitor, [*logged, *(f"{start}…" for start in begin)])
                raise ConfigError(f"callbacks.{name}.monitor={monitor!r} is not logged in the {stage} stage: {choices}")


def logged_names(config: RunConfig, stage: str, data: TaskData) -> Iterator[str]:
    """Yield the names that `QATModule` logs until a stage's first validation."""
    losses = {"task": {}} if stage == "teacher" else config.losses
    yield from ("lr", "train/loss")
    yield from (
        f"train/loss_{name}" for name, node in losses.items() if node is not None and node.get("weight", 1) != 0
    )
    yield from (f"val/{name}" for name in data.metrics)
    if stage == "intervene":
        yield from (f"val_assisted/{name}" for name in data.metrics)


CHECKS: dict[str, Callable[[Run, nn.Module], object]] = {
    "loggers": _check_loggers,
    "monitored values": _check_monitors,
    "trainers and callbacks": _check_parts,
    "processes and rows": _check_processes,
    "tokens": lambda run, teacher: check_tokens(run.data, teacher),
    "pixels": lambda run, teacher: _check_pixels(run.data, teacher),
    "classes": lambda run, teacher: _check_labels(run, teacher),
    "tokenizer": lambda run, teacher: _check_tokenizer(run.config, run.data, teacher),
    "bit budget": lambda run, teacher: check_budget(run.config, teacher),
    "two rows": _check_two_rows,
    "teacher cache": lambda run, teacher: run.find_cache(teacher),
}
"""Name → check, in order of cost. Configuration, files and the hub are checked before data and models are read."""


def _check_family(model: ModelConfig) -> None:
    """Check that transformers knows the family of a configured architecture and accepts its fields."""
    if model.pretrained or (model.path and (Path(model.path) / "config.json").is_file()):
        return
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModel
    from transformers.activations import ACT2FN

    kind = model.architecture.get("model_type")
    if kind not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(kind), CONFIG_MAPPING.keys(), n=3) or ["bert", "gpt2", "llama", "vit"]
        raise ConfigError(
            f"model.architecture.model_type={kind!r} is unknown to transformers: set {', '.join(near)}, …"
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
    except Exception as error:  # a family's own check of a field
        raise ConfigError(f"model.architecture: {type(error).__name__}: {one_line(error)}") from error


def check_tokens(data: TaskData, model: nn.Module) -> None:
    """Check positions, token types and vocabulary of a text model for all rows."""
    rows = [row for split in (data.train_rows, data.validation_rows) for row in split if "input_ids" in row]
    if not rows:
        return
    longest = getattr(data, "max_length", max(len(row["input_ids"]) for row in rows))
    table, positions = _table(model, "embeddings.position"), getattr(model.config, "max_position_embeddings", None)
    if table is not None and table.padding_idx is not None:  # RoBERTa counts positions from `padding_idx` + 1
        positions = table.num_embeddings - table.padding_idx - 1
    if positions is not None and longest > positions:
        raise ConfigError(
            f"rows of {longest} tokens are beyond the model's {positions} positions: give data.max_length={positions} or less"
        )
    types = _table(model, "embeddings.token_type")
    kinds = [_largest(row["token_type_ids"]) for row in rows if "token_type_ids" in row]
    if types is not None and kinds and max(kinds) >= types.num_embeddings:
        raise ConfigError(
            f"the data holds token type {max(kinds)}, and the model knows 0 to {types.num_embeddings - 1}: give the model's own"
            " tokenizer with data.tokenizer=…, or another model.path"
        )
    vocabulary = getattr(model.config, "vocab_size", None)
    padding = getattr(getattr(data, "tokenizer", None), "pad_token_id", None) or 0
    largest = max(_largest(row["input_ids"]) for row in rows)
    if vocabulary is not None and max(largest, padding) >= vocabulary:
        held = "holds token" if largest >= vocabulary else "are padded with token"
        raise ConfigError(
            f"the data {held} {max(largest, padding)}, and the model knows 0 to {vocabulary - 1}: give the model's own"
            " tokenizer with data.tokenizer=…, or another model.path"
        )


def _table(model: nn.Module, part: str) -> nn.Embedding | None:
    path = part_paths(model).get(part)
    table = None if path is None else model.get_submodule(path)
    return table if isinstance(table, nn.Embedding) else None


def _largest(row: Any) -> int:
    """Return the largest token of a row."""
    return int(row.max() if isinstance(row, Tensor) else max(row))


def _check_pixels(data: TaskData, model: nn.Module) -> None:
    """Check height, width and channels of an image model."""
    interpolated, size = family(model).any_image_size, getattr(data, "size", 0)
    if interpolated and (rest := size % (patch := layer_config(model).patch_size)):
        raise ConfigError(f"data.size={size} is no multiple of the patch_size={patch}: set data.size={size - rest}")
    for name, entry in (("size", "image_size"), ("channels", "num_channels")):
        given, expected = getattr(data, name, None), getattr(layer_config(model), entry, None)
        if None not in (given, expected) and given != expected and not (interpolated and name == "size"):
            raise ConfigError(f"data.{name}={given}, but the model has {entry}={expected}: set data.{name}={expected}")


def _check_labels(run: Run, teacher: nn.Module) -> None:
    """Check that there are labels to train a teacher on, and that model and data, if both name classes, number them alike."""
    if not run.config.stages.teacher.empty and "labels" not in run.data.calibration_batches(1)[0]:
        raise ConfigError(
            f"the rows of {run.data.task} have no labels to fine-tune a teacher on: set stages.teacher.max_epochs=0"
        )
    if (difference := other_order(label_names(teacher), run.data.label_names)) is not None:
        name, own, number = difference
        raise ConfigError(
            f"Label order mismatch: the model maps {name!r} to {own}, the data to {number}. Fix id2label in config.json."
        )


def _check_tokenizer(config: RunConfig, data: TaskData, model: nn.Module) -> None:
    """Check that another tokenizer than the model's own gives each token the same number; it may add tokens at the end."""
    own, path = getattr(data, "tokenizer", None), config.model.path
    if own is None or not config.model.pretrained or config.data.get("tokenizer") in (None, path):
        return
    try:
        known = read_tokenizer(path, 1, must_pad=False).get_vocab()
    except ValueError:  # the model comes without one: there is nothing to compare with
        return
    numbers = own.get_vocab()
    moved = [token for token, number in numbers.items() if known.get(token, number) != number]
    if moved or len(numbers.keys() - known.keys()) > len(numbers) / 2:
        token = moved[0] if moved else next(iter(numbers.keys() - known.keys()))
        raise ConfigError(
            f"data.tokenizer={config.data['tokenizer']!r} is not the tokenizer of model.path={path!r}: {token!r} is"
            f" {numbers[token]} and not {known.get(token, 'known')}: leave data.tokenizer out, or give another model.path"
        )
