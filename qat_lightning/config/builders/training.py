"""Build the module, callbacks, loggers and trainer of a stage from the configuration, and the settings of its result."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from qat_lightning.compat import without_signal_handlers
from qat_lightning.config.builders.models import in_teacher_precision
from qat_lightning.config.instantiate import check_targets, create, create_all
from qat_lightning.config.schema import BUDGET_WIDTHS, ConfigError, Plain, RunConfig, TaskLossConfig, as_plain
from qat_lightning.data.base import TaskData
from qat_lightning.distillation.intervention import Intervention
from qat_lightning.distillation.losses import Loss, TaskLoss
from qat_lightning.models.convert import checkpoint_activations, open_attention_for
from qat_lightning.training.callbacks import InterventionSchedule, SeedEachBatch, StageBar, StoppingReport
from qat_lightning.training.module import QATModule
from qat_lightning.training.stage import Settings, Stage
from qat_lightning.training.teacher_cache.cache import TeacherCache

SAME_CONTENT = ("path", "name", "tokenizer", "tokenizer_revision", "num_workers", "test_split")
"""Settings that say where the data is, how it is read or scored at the end; they may change: the content itself is compared."""

AS_BEFORE: Sequence[tuple[str, Any]] = (
    (r"data\.group_by_length", False),
    (r"data\.reshuffle", True),
    (r"losses\..*\.implementation", "dense"),
    (r"compile", False),
    (r"task_loss\.class_weights", None),
    (r"task_loss\.label_smoothing", 0.0),
    (r"teacher_precision", None),
    (r"quantization\.budget", None),
    (r"quantization\.budget_widths", list(BUDGET_WIDTHS)),
)
"""Settings that count only where they are otherwise: run folders from before them know none of these."""

SMALLER_IS_BETTER = ("loss", "perplexity", "error", "divergence", "cover_length_ratio")
"""Words in the name of a value that is better when it is smaller."""

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
"""Lightning's; with a file name each writes to the folder of the first logger, logs/<stage>/, at the end of the stage."""


def stage_names(config: RunConfig) -> list[str]:
    """The stages of this run: teacher, intervene (where something intervenes, for at least a step), train."""
    intervening = config.intervention and not config.stages.intervene.empty
    return ["teacher", *(["intervene"] if intervening else []), "train"]


@dataclass(frozen=True)
class Objective:
    """The losses and the interventions of a run or of a stage, by name; built once and shared by all that read them."""

    losses: Mapping[str, Loss]
    interventions: Mapping[str, Intervention]
    task: Loss = field(default_factory=TaskLoss)

    def of(self, stage: str) -> Objective:
        """Return those that a stage trains with."""
        losses = {"task": self.task} if stage == "teacher" else self.losses
        return Objective(losses, self.interventions if stage == "intervene" else {})

    @property
    def sites(self) -> set[str]:
        """Return the sites that the teacher is captured at."""
        read = {site for loss in self.losses.values() if loss.weight != 0 for site in loss.sites}
        return read | {site for intervention in self.interventions.values() for site in intervention.sites}


def build_objective(config: RunConfig, data: TaskData) -> Objective:
    """Build the losses and the interventions of a run; `task_loss` applies to each `TaskLoss`.

    Raises:
        ConfigError: `task_loss` does not fit the labels.
    """
    given, losses = _task_loss(config.task_loss, data), create_all(config.losses, "losses")
    own = {name: TaskLoss(loss.weight, **given) for name, loss in losses.items() if type(loss) is TaskLoss}
    return Objective(losses | own, create_all(config.intervention, "intervention"), TaskLoss(**given))


def _task_loss(given: TaskLossConfig, data: TaskData) -> dict[str, Any]:
    """Return the arguments of `TaskLoss`: "balanced" is rows ÷ (classes · rows of the class) of the training rows."""
    weights, classes = given.class_weights, data.num_labels
    if weights is None and not given.label_smoothing:
        return {}
    if data.regression or data.multi_label or not data.head.endswith("_classification"):
        raise ConfigError(
            f"task_loss.class_weights and .label_smoothing are for classes, not for {data.task}: remove them"
        )
    if weights == "balanced":
        labels = torch.cat([torch.as_tensor(row["labels"]).flatten() for row in data.train_rows])
        counts = labels[labels >= 0].bincount(minlength=classes)
        if not counts.all():
            missing = int(counts.argmin())
            raise ConfigError(f"task_loss.class_weights=balanced: class {missing} has no training row: give a list")
        weights = (counts.sum() / (classes * counts)).tolist()
    if weights is not None and len(weights) != classes:
        raise ConfigError(f"task_loss.class_weights={weights} must have {classes} numbers, one for each class")
    return {"class_weights": weights, "label_smoothing": given.label_smoothing}


@dataclass(frozen=True)
class StageParts:
    """The objects that train a stage, without its models: preflight builds it, and the stage is trained with the same objects."""

    objective: Objective
    callbacks: list[Callback]
    trainer: Trainer


def build_parts(
    config: RunConfig, stage: Stage, steps: int, validate_every: int, data: TaskData, objective: Objective
) -> StageParts:
    """Build the trainer of a stage and its callbacks; the stage's own come last, so that checkpoints hold the others' state.

    Loggers are added when the stage begins, since some of them open a log when they are made.
    """
    settings, own = config.stage(stage.name), objective.of(stage.name)
    callbacks = build_callbacks(config, stage.name, data, own)
    callbacks += stage.callbacks(data, settings.checkpoint_every, settings.checkpoint_minutes)
    trainer = build_trainer(config, stage.name, steps, stage.folder, callbacks, validate_every, loggers=())
    return StageParts(own, callbacks, trainer)


def build_module(
    config: RunConfig,
    stage: str,
    steps: int,
    student: nn.Module,
    data: TaskData,
    teacher: nn.Module | None = None,
    cache: TeacherCache | None = None,
    objective: Objective | None = None,
) -> QATModule:
    """The LightningModule of one stage, attention opened where a loss, or an intervention, reads inside it.

    Args:
        teacher: as it was fine-tuned; what teaches is a copy where `teacher_precision` says so, of which `cache` has signals.
        objective: the stage's losses and interventions; None builds them.
    """
    taught_by = None if teacher is None else in_teacher_precision(config, teacher)
    objective = objective or build_objective(config, data).of(stage)
    for model in (student, taught_by):
        if model is not None:
            open_attention_for(model, objective.sites)
    if config.activation_checkpointing:
        checkpoint_activations(student)
    lr = config.stage(stage).lr
    optimizer = config.optimizer | ({} if lr is None else {"lr": lr})
    if optimizer.get("fused", False) is None and torch.cuda.is_available():
        optimizer["fused"] = True  # it can leave out a step by itself, so the host never waits (`NonFiniteCheck`)
    return QATModule(
        student=student,
        losses=objective.losses,
        metrics=data.metrics,
        predict=data.predict,
        optimizer=create(optimizer, "optimizer"),
        lr_scheduler=create(config.lr_scheduler, "lr_scheduler"),
        steps=steps,
        stage=stage,
        teacher=taught_by,
        interventions=list(objective.interventions.values()),
        weight_decay=config.optimizer.get("weight_decay", 0.0),
        step_size={
            kind: {name: value for name, value in vars(given).items() if value is not None}
            for kind, given in vars(config.quantization.step_size).items()
        },
        cache=cache,
        full_teacher=None if taught_by is teacher else teacher,
    )


def build_trainer(
    config: RunConfig,
    stage: str,
    steps: int,
    folder: Path,
    callbacks: Sequence[Callback] = (),
    validate_every: int = 1,
    record: bool = True,
    loggers: Sequence[Logger] | None = None,
) -> Trainer:
    """Lightning's trainer for one stage, validating every so many batches; without `record` one that only scores.

    `loggers` None takes those of the configuration.
    """
    trainer = dict(vars(config.trainer))
    bar = trainer.pop("enable_progress_bar") and record
    trainer["enable_model_summary"] &= record
    profiler = trainer.pop("profiler")
    made = Trainer(
        **trainer | {"strategy": _strategy(trainer["strategy"], trainer["devices"])},
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=validate_every,
        check_val_every_n_epoch=None,  # the data is one pass for the whole stage
        num_sanity_val_steps=0,
        inference_mode=False,  # no_grad: tensors that count their changes can be quantized once for query, key and value
        use_distributed_sampler=False,  # the data's own samplers know the ranks, and resume
        enable_progress_bar=bar,
        enable_checkpointing=record,
        callbacks=[*callbacks, *([StageBar(stage)] if bar else [])],
        logger=(build_loggers(config, stage, folder) if loggers is None else list(loggers)) if record else False,
        profiler=PROFILERS[profiler.name](filename=profiler.name) if record and profiler else None,
        default_root_dir=folder,
    )
    return without_signal_handlers(made)


def build_callbacks(
    config: RunConfig, stage: str, data: TaskData, objective: Objective | None = None
) -> list[Callback]:
    """Build the callbacks that apply schedules in this stage, then the configured ones with their `mode` (`with_mode`)."""
    callbacks: list[Callback] = [SeedEachBatch(config.seed)]
    if stage == "intervene" and config.intervention_schedule:
        schedule = create(config.intervention_schedule, "intervention_schedule")
        callbacks.append(InterventionSchedule((objective or build_objective(config, data)).interventions, schedule))
    chosen = {name: node for name, node in config.callbacks.items() if node is not None}
    check_targets(chosen, "callbacks")
    directed = {name: with_mode(node, f"callbacks.{name}", data) for name, node in chosen.items()}
    for made in create_all(directed, "callbacks").values():
        if not getattr(made, "first_stage_only", False) or stage == stage_names(config)[1]:
            callbacks.append(made)
    if any(isinstance(callback, EarlyStopping) for callback in callbacks):
        callbacks.append(StoppingReport())
    return callbacks


def with_mode(node: Plain, key: str, data: TaskData) -> Plain:
    """The node of a callback, its `mode` set to "min" or "max" if the callback has one and none, or "auto", was given.

    (Lightning's own default is "min".) Raises ConfigError if nothing says which end of the watched value is better.
    """
    node = {name: value for name, value in node.items() if name != "_partial_"}
    arguments = inspect.signature(get_object(node["_target_"])).parameters
    if node.get("mode", "auto") != "auto" or not {"mode", "monitor"} <= arguments.keys():
        return node
    monitor = node.get("monitor")
    if monitor is None:
        return {name: value for name, value in node.items() if name != "mode"}
    if (larger := _larger_is_better(monitor, data)) is None:
        raise ConfigError(f"{key}.mode must be given: is {monitor} better when larger (max) or smaller (min)?")
    return node | {"mode": "max" if larger else "min"}


def _larger_is_better(monitor: str, data: TaskData) -> bool | None:
    """Tell whether a larger value is better, by the metric's attribute or else by the name; None if both are silent."""
    kind, _, name = monitor.partition("/")
    metric = data.metrics.get(name) if kind in ("val", "val_assisted") else None
    if metric is not None and metric.higher_is_better is not None:
        return bool(metric.higher_is_better)
    if any(word in monitor.lower() for word in SMALLER_IS_BETTER):
        return False
    return None if metric is None else True  # a correlation does not say


def stage_settings(
    config: RunConfig, stage: str, steps: int, data: TaskData, content: str, previous: str | None
) -> Settings:
    """Return dotted key → value of all settings that the result of a stage depends on; `content` is the data's fingerprint."""
    groups = ["model", "optimizer", "lr_scheduler", "callbacks", "task_loss"]
    if stage != "teacher":
        groups += ["quantization", "losses", "teacher"]
    if stage == "intervene":
        groups += ["intervention", "intervention_schedule"]
    trainer = (
        "devices", "num_nodes", "precision", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm",
        "limit_val_batches",
    )  # fmt: skip
    own = ("lr", "validate_every", "keep", *(["target_modules"] if stage == "intervene" else []))
    plain = as_plain(config)
    chosen = {group: plain[group] for group in groups} | {
        "seed": config.seed,
        "trainer": {name: plain["trainer"][name] for name in trainer},
        f"stages.{stage}": {name: plain["stages"][stage][name] for name in own},
        "data": {name: value for name, value in config.data.items() if name not in SAME_CONTENT} | {"content": content},
        "compile": config.compile,
        **({} if stage == "teacher" else {"teacher_precision": plain["teacher_precision"]}),
        "steps": steps,
        "previous stage": previous,
    }
    return {
        key: value
        for key, value in _flat(chosen)
        if not any(re.fullmatch(name, key) and value == usual for name, usual in AS_BEFORE)
    }


def _flat(node: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in node.items():
        flat += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return flat


def _strategy(name: str, devices: Any) -> Any:
    """Plain DDP is adapted: an intervention leaves weights without a gradient, and every rank has the same buffers."""
    several = devices not in (1, "1", "auto") and not (isinstance(devices, list) and len(devices) == 1)
    if name == "ddp" or (name == "auto" and several):
        return DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
    return name


def build_loggers(config: RunConfig, stage: str, folder: Path) -> list[Logger]:
    """The CSV that the report reads (a resumed stage goes on in a file of its own), and the configured ones."""
    versions = itertools.chain([stage], (f"{stage}.{part}" for part in itertools.count(1)))
    version = next(name for name in versions if not (folder / "logs" / name / "metrics.csv").exists())
    loggers: list[Logger] = [CSVLogger(folder, name="logs", version=version, flush_logs_every_n_steps=20)]
    loggers += [build_logger(config, name, stage, folder) for name, node in config.logger.items() if node is not None]
    return loggers


def build_logger(config: RunConfig, name: str, stage: str, folder: Path) -> Logger:
    """A configured logger; a partial one gets the stage's name and the run folder, where it takes them and has none."""
    node = config.logger[name]
    check_targets(node, f"logger.{name}")
    offered = {"name": f"{config.experiment}-{stage}", "save_dir": str(folder)}
    kind = get_object(node["_target_"])
    taken = {key: value for key, value in offered.items() if key in inspect.signature(kind).parameters}
    if issubclass(kind, WandbLogger):
        taken["group"] = folder.name
    filled = node if not node.get("_partial_") else taken | node | {"_partial_": False}
    made: Logger = create(filled, f"logger.{name}")
    return made
