"""Configuration → objects: data, models, module, trainer. Nothing below this file reads configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from qat_lightning.config import ConfigError, Plain, create, create_all
from qat_lightning.convert import keep_layers, open_attention_for, quantize
from qat_lightning.data.base import Head, TaskData
from qat_lightning.losses import Task
from qat_lightning.quantized import calibrate
from qat_lightning.sites import FAMILIES, family, part_paths
from qat_lightning.training.callbacks import InterventionSchedule, SeedEachBatch, StageBar
from qat_lightning.training.module import QATModule
from qat_lightning.training.stages import Settings

HEADS: Mapping[Head, Any] = {
    "text_classification": AutoModelForSequenceClassification,
    "image_classification": AutoModelForImageClassification,
    "question_answering": AutoModelForQuestionAnswering,
    "causal_language_model": AutoModelForCausalLM,
}

FULL_PRECISION = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}
"""Lightning's precisions that convert the model; made so from the start, a resumed run begins like any other."""


def build_data(config: Plain) -> TaskData:
    """The task's data, not read yet."""
    data = create(config["data"], "data")
    if not isinstance(data, TaskData):
        raise ConfigError(f"data._target_={config['data']['_target_']!r} must be a TaskData")
    return data


def build_model(config: Plain, data: TaskData) -> PreTrainedModel:
    """An unforked transformers model with the task's head: pretrained from a hub id or folder, or random weights.

    Weights are read from safetensors only, and no code that comes with a model is run.
    """
    loaded = _read_model(config, data)
    family(loaded)
    loaded.config.use_cache = False  # of a language model's keys and values; training has no use for it
    if data.head == "text_classification" and loaded.config.pad_token_id is None:
        # A decoder classifies at the last token that is no padding.
        loaded.config.pad_token_id = getattr(getattr(data, "tokenizer", None), "pad_token_id", 0)
    loaded.to(dtype=FULL_PRECISION.get(config["trainer"]["precision"], torch.float32))  # type: ignore[call-arg]
    return loaded


def _read_model(config: Plain, data: TaskData) -> PreTrainedModel:
    model, auto = config["model"], HEADS[data.head]
    if not model["pretrained"]:
        described = _described(model, num_labels=data.num_labels)
        _check_head(described, data.head)
        return auto.from_config(described, trust_remote_code=False)
    if model["path"] is None:
        raise ConfigError(
            "model.path must be given: a hub id or a folder; or model.pretrained=false for random weights"
        )
    try:
        _check_head(AutoConfig.from_pretrained(model["path"], trust_remote_code=False), data.head)
        loaded, report = auto.from_pretrained(
            model["path"],
            num_labels=data.num_labels,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"model.path={model['path']!r} cannot be loaded: {error}") from error
    _check_fit(config, loaded, report)
    return loaded


def build_student(config: Plain, teacher: nn.Module, data: TaskData) -> nn.Module:
    """Put the configured quantizers into `teacher` (hand over a copy); calibrate what is static on training batches."""
    student = build_quantized(config, teacher)
    calibrate(student, data.calibration_batches(config["quantization"]["calibration_rows"]))
    return student


def build_quantized(config: Plain, teacher: nn.Module) -> nn.Module:
    """The student's layers of `teacher` with the configured quantizers, not calibrated; in place."""
    if config["model"]["student_layers"] is not None:
        keep_layers(teacher, config["model"]["student_layers"])
    quantization = config["quantization"]
    rules = list(create_all(quantization["rules"], "quantization.rules").values())
    attention = quantization["attention"]
    operands = create(attention, "quantization.attention") if attention else None
    return quantize(teacher, rules, operands, quantization["bits"] or {})


def build_module(
    config: Plain, stage: str, steps: int, student: nn.Module, data: TaskData, teacher: nn.Module | None = None
) -> QATModule:
    """The LightningModule of one stage, attention opened where a loss, or an intervention, reads inside it."""
    fine_tuning = stage == "teacher"
    losses = {"task": Task()} if fine_tuning else create_all(config["losses"], "losses")
    interventions = create_all(config["intervention"], "intervention") if stage == "intervene" else {}
    sites = {site for loss in losses.values() if loss.weight != 0 for site in loss.sites}
    replaced = {site for intervention in interventions.values() for site in intervention.sites}
    for model in (student, teacher):
        if model is not None:
            open_attention_for(model, sites | replaced)
    lr = config["stages"][stage]["lr"]
    optimizer = config["optimizer"] | ({} if lr is None else {"lr": lr})
    return QATModule(
        student=student,
        losses=losses,
        metrics=data.metrics,
        predict=data.predict,
        optimizer=create(optimizer, "optimizer"),
        scheduler=create(config["scheduler"], "scheduler"),
        steps=steps,
        teacher=teacher,
        interventions=list(interventions.values()),
        weight_decay=config["optimizer"].get("weight_decay", 0.0),
        learned={kind: _without_none(given) for kind, given in config["quantization"]["learned"].items()},
    )


def build_trainer(
    config: Plain,
    stage: str,
    steps: int,
    folder: Path,
    callbacks: Sequence[Callback] = (),
    validate_every: int = 1,
    record: bool = True,
) -> Trainer:
    """Lightning's trainer for one stage, validating every so many batches.

    Without `record` it only scores: no bar, no log, no callback.
    """
    trainer = dict(config["trainer"])
    bar = trainer.pop("enable_progress_bar") and record
    return Trainer(
        **trainer | {"strategy": _strategy(trainer["strategy"], trainer["devices"])},
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=validate_every,
        check_val_every_n_epoch=None,  # the data is one pass for the whole stage
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data's own samplers know the ranks, and resume
        enable_progress_bar=bar,
        enable_model_summary=False,
        enable_checkpointing=record,
        callbacks=[*callbacks, *([StageBar(stage)] if bar else [])],
        logger=_loggers(config, stage, folder) if record else False,
        default_root_dir=folder,
    )


def build_callbacks(config: Plain, stage: str, data: TaskData) -> list[Callback]:
    """What turns knobs in this stage, and the configured callbacks; a partial one is told which way the metric is better."""
    callbacks: list[Callback] = [SeedEachBatch(config["seed"])]
    if stage == "intervene":
        schedule = create(config["schedule"], "schedule")
        callbacks.append(InterventionSchedule(create_all(config["intervention"], "intervention"), schedule))
    for name, callback in create_all(config["callbacks"], "callbacks").items():
        made = callback(mode="max" if data.higher_is_better else "min") if isinstance(callback, partial) else callback
        if not isinstance(made, Callback):
            raise ConfigError(f"callbacks.{name} is a {type(made).__name__}, which is no callback of Lightning")
        if not getattr(made, "first_stage_only", False) or stage == _first_stage(config):
            callbacks.append(made)
    return callbacks


def stage_settings(
    config: Plain, stage: str, steps: int, data: TaskData, content: str, previous: str | None
) -> Settings:
    """Dotted key → value of all that decides the stage's result, and so its fingerprint; content is the data's."""
    groups = ["model", "optimizer", "scheduler", "callbacks"]
    if stage != "teacher":
        groups += ["quantization", "losses", "teacher"]
    if stage == "intervene":
        groups += ["intervention", "schedule"]
    trainer = (
        "devices",
        "num_nodes",
        "precision",
        "accumulate_grad_batches",
        "gradient_clip_val",
    )
    own = ("lr", "validate_every", "keep", *(["parts"] if stage == "intervene" else []))
    chosen = {group: config[group] for group in groups} | {
        "seed": config["seed"],
        "trainer": {name: config["trainer"][name] for name in trainer},
        f"stages.{stage}": {name: config["stages"][stage][name] for name in own},
        "data": {
            "content": content,
            "batch_size": data.batch_size,
            "metric": data.metric,
            "order": data.seed,
            "augmentation": config["data"].get("augmentation"),
        },
        "steps": steps,
        "previous stage": previous,
    }
    return dict(_flat(chosen))


def _flat(node: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in node.items():
        flat += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return flat


def _first_stage(config: Plain) -> str:
    """The first that trains the student."""
    budget = config["stages"]["intervene"]
    intervening = config["intervention"] and 0 not in (budget["max_steps"], budget["max_epochs"])
    return "intervene" if intervening else "train"


def _check_fit(config: Plain, model: PreTrainedModel, report: Mapping[str, Any]) -> None:
    """A head that is missing or for other classes is made anew, if it is going to be trained; all else must be as its
    configuration says."""
    path, head = config["model"]["path"], part_paths(model).get("head", "head")
    sizes = {name: f"{name} {tuple(saved)} for {tuple(own)}" for name, saved, own in report["mismatched_keys"]}
    if wrong := [told for name, told in sizes.items() if head not in name]:
        raise ConfigError(
            f"model.path={path!r} cannot be loaded, its weights do not fit its config.json: {', '.join(wrong)}"
        )
    new = [name for name in (*sizes, *report["missing_keys"]) if head in name]
    teacher = config["stages"]["teacher"]
    if new and 0 in (teacher["max_steps"], teacher["max_epochs"]):
        raise ConfigError(
            f"model.path={path!r} has no {head} for this data, and no teacher stage trains one: give a model that is"
            " fine-tuned on it, or stages.teacher.max_epochs=3"
        )


def _check_head(described: PretrainedConfig, head: Head) -> None:
    known = FAMILIES.get(described.model_type)
    if head == "causal_language_model" and known is not None and not known.causal:
        raise ConfigError(
            f"a {described.model_type} model reads in both directions and predicts no next token: choose model=gpt2 or llama,"
            " or other data"
        )
    if type(described) not in HEADS[head]._model_mapping:
        raise ConfigError(
            f"a {described.model_type} model has no head for {head.replace('_', ' ')}: choose another model=… or data=…"
        )


def _described(model: Plain, num_labels: int) -> PretrainedConfig:
    """The architecture: of a local folder, else as configured; never from the hub."""
    if model["path"] and (Path(model["path"]) / "config.json").is_file():
        return AutoConfig.from_pretrained(model["path"], num_labels=num_labels, trust_remote_code=False)
    if not model["architecture"]:
        raise ConfigError("model.pretrained=false needs model.architecture, or a model.path that holds a config.json")
    return AutoConfig.for_model(**model["architecture"], num_labels=num_labels)


def _without_none(node: Plain) -> Plain:
    return {name: value for name, value in node.items() if value is not None}


def _strategy(name: str, devices: Any) -> Any:
    """Lightning's, but plain DDP made to fit: an intervention leaves weights without a gradient, and every rank has the
    same buffers."""
    several = devices not in (1, "1", "auto") and not (isinstance(devices, list) and len(devices) == 1)
    if name == "ddp" or (name == "auto" and several):
        return DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
    return name


def _loggers(config: Plain, stage: str, folder: Path) -> list[Logger]:
    """The CSV that the report reads (a resumed stage goes on in a file of its own), and the configured ones."""
    logs, version, part = folder / "logs", stage, 0
    while (logs / version / "metrics.csv").exists():
        part += 1
        version = f"{stage}.{part}"
    loggers: list[Logger] = [CSVLogger(folder, name="logs", version=version, flush_logs_every_n_steps=20)]
    for logger in create_all(config["logger"], "logger").values():
        named = {"name": f"{config['experiment']}-{stage}", "group": folder.name, "save_dir": folder}
        loggers.append(logger(**named) if isinstance(logger, partial) else logger)
    return loggers
