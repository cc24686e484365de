"""Typed schema of a run, checks across its fields, and the one place that turns configuration into objects."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, TypeAdapter, ValidationError

ALLOWED = ("qat_lightning.", "torchmetrics.", "lightning.pytorch.", "torch.optim.")
"""Where a `_target_` may live; checked on the resolved object, since a dotted path can be an alias."""

Plain = dict[str, Any]
"""A resolved configuration: dictionaries, lists, strings, numbers."""


class ConfigError(ValueError):
    """A mistake in the configuration, told in one message with the remedy."""


class Teacher(Enum):
    """Where the student's signals are matched against: the model it was quantized from, or nothing (plain QAT)."""

    full_precision = "full_precision"
    none = "none"


class Keep(Enum):
    """The weights that a stage hands on: best on the validation split, or last."""

    best = "best"
    last = "last"


class Kind(Enum):
    """What the model reads."""

    text = "text"
    image = "image"


@dataclass
class ModelConfig:
    """path: hub id or folder · architecture: fields of the transformers configuration, for pretrained=false."""

    path: str | None = None
    pretrained: bool = True
    kind: Kind = Kind.text
    architecture: dict[str, Any] = field(default_factory=dict)


@dataclass
class StageConfig:
    """Budgets in optimizer steps and epochs; lr: this stage's own (else optimizer.lr)."""

    max_steps: int | None = None
    max_epochs: int | None = None
    lr: float | None = None
    validate_every: int | None = None
    checkpoint_every: int = 500
    keep: Keep = Keep.best


@dataclass
class TrainStageConfig(StageConfig):
    """includes_intervene: the budget counts the intervene stage's steps (arXiv:2302.11812: steps(1) + steps(2) = N)."""

    includes_intervene: bool = False


@dataclass
class StagesConfig:
    teacher: StageConfig = field(default_factory=StageConfig)
    intervene: StageConfig = field(default_factory=StageConfig)
    train: TrainStageConfig = field(default_factory=TrainStageConfig)


@dataclass
class QuantizationConfig:
    """rules: name → Rule, the first that matches wins · attention: an AttentionRule, or null."""

    weight: Any = None
    embedding: Any = None
    activation: Any = None
    rules: dict[str, Any] = field(default_factory=dict)
    attention: Any = None
    calibration_rows: int = 256


@dataclass
class TrainerConfig:
    """Lightning's own names; see its Trainer. Budgets and validation belong to `stages`."""

    accelerator: str = "auto"
    devices: Any = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str | None = None
    log_every_n_steps: int = 10
    limit_val_batches: Any = None
    deterministic: bool | None = None
    benchmark: bool | None = None
    detect_anomaly: bool = False
    enable_progress_bar: bool = True
    profiler: str | None = None


@dataclass
class RunConfig:
    """threads: CPU threads of torch; None leaves torch's own choice."""

    experiment: str = "run"
    seed: int = 1
    threads: int | None = None
    teacher: Teacher = Teacher.full_precision
    model: ModelConfig = field(default_factory=ModelConfig)
    data: dict[str, Any] = field(default_factory=dict)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    losses: dict[str, Any] = field(default_factory=dict)
    intervention: dict[str, Any] = field(default_factory=dict)
    schedule: Any = None
    optimizer: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    stages: StagesConfig = field(default_factory=StagesConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    callbacks: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)


_DATA_TYPES: Mapping[str, Any] = {
    "path": str | None, "name": str | None, "tokenizer": str | None, "label_column": str, "text_columns": list[str],
    "batch_size": int, "evaluation_batch_size": int | None, "max_length": int, "num_labels": int, "num_workers": int,
    "train_limit": int | None, "validation_limit": int | None, "metric": str, "seed": int, "rows": int, "length": int,
}  # fmt: skip
"""The data modules' classes import Lightning, which takes seconds; these types are known without."""

_POSITIVE = (
    "data.batch_size", "data.max_length", "data.train_limit", "data.validation_limit", "data.num_labels",
    "stages.teacher.checkpoint_every", "stages.intervene.checkpoint_every", "stages.train.checkpoint_every",
    "stages.teacher.validate_every", "stages.intervene.validate_every", "stages.train.validate_every",
    "threads", "trainer.accumulate_grad_batches", "quantization.calibration_rows",
)  # fmt: skip


def register_schema() -> None:
    """Make the schema known to Hydra as `schema`, the first entry of a configuration's defaults list."""
    ConfigStore.instance().store(name="schema", node=RunConfig)


def resolve(config: DictConfig) -> Plain:
    """Interpolations resolved, enumerations as their names. Raises ConfigError for a value that must be given."""
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(f"{', '.join(missing)} must be given: add {' '.join(f'{key}=…' for key in missing)}")
    plain = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    return typing.cast(Plain, plain)


def check(config: Plain) -> None:
    """All that can be known to be wrong before data and models are loaded, in a second or two.

    Raises:
        ConfigError: naming the key and the valid choices.
    """
    _check_values(config)
    losses = _create_all(config, "losses")
    interventions = _create_all(config, "intervention")
    for group in ("schedule", "scheduler"):
        if config[group]:
            create(config[group], group)
    check_targets(config["optimizer"], "optimizer")
    _create_all({"rules": config["quantization"]["rules"]}, "rules", "quantization.rules")
    for key, quantizer in _quantizers(config["quantization"]):
        create(quantizer | {"_partial_": False}, key)
    _check_teacher(config, losses)
    _check_schedule(config, interventions)
    _check_layers(config)


def create(node: Any, key: str, **given: Any) -> Any:
    """The object that a `_target_` node describes; `given` are arguments that configuration cannot hold.

    Raises:
        ConfigError: a target outside `ALLOWED`, an argument that it does not know, a value of another type or one that
            the object refuses.
    """
    check_targets(node, key, given)
    try:
        return instantiate(node, _convert_="all", **given)
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, ValueError | TypeError):
            raise ConfigError(f"{key}: {cause}") from error
        raise


def check_targets(node: Any, key: str, given: Mapping[str, Any] | None = None) -> None:
    """Every `_target_` below `node`: allowed, known arguments, plain values of the annotated types."""
    if isinstance(node, list | tuple):
        for index, child in enumerate(node):
            check_targets(child, f"{key}.{index}")
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        _check_arguments(_locate(node["_target_"], key), node, key, given or {})
    for name, child in node.items():
        check_targets(child, f"{key}.{name}")


def suggest(wrong: str, choices: typing.Iterable[str]) -> str:
    """`did you mean 'weight'? choices: …` for a mistyped name."""
    choices = sorted(str(choice) for choice in choices)
    near = difflib.get_close_matches(wrong, choices, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"choices: {', '.join(choices) or 'none'}"


def _locate(target: Any, key: str) -> Any:
    """The allowed class or function of that dotted path, checked by where it is really defined."""
    refused = ConfigError(f"{key}._target_={target!r} is not allowed: only {', '.join(f'{p}*' for p in ALLOWED)}")
    if not isinstance(target, str) or not target.startswith(ALLOWED):
        raise refused
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}._target_={target!r} does not exist: {error}") from error
    if not (inspect.isclass(found) or inspect.isfunction(found)) or not f"{found.__module__}.".startswith(ALLOWED):
        raise refused
    return found


def _check_arguments(target: Any, node: Mapping[str, Any], key: str, given: Mapping[str, Any]) -> None:
    parameters = inspect.signature(target).parameters
    names = {name for name in node if not (name.startswith("_") and name.endswith("_"))}
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if (unknown := sorted(names - set(parameters))) and not open_ended:
        raise ConfigError(f"{key}.{unknown[0]} is no argument of {target.__name__}: {suggest(unknown[0], parameters)}")
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # an annotation that cannot be evaluated says nothing about the value
        hints = {}
    for name in names & set(hints):
        if not isinstance(node[name], Mapping):
            _check_type(node[name], hints[name], f"{key}.{name}")
    required = {
        n for n, p in parameters.items() if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    if not node.get("_partial_") and (missing := sorted(required - names - set(given))):
        raise ConfigError(f"{key}.{missing[0]} must be given: {target.__name__} needs it")


def _check_type(value: Any, annotation: Any, key: str) -> None:
    """Refuse a plain value that the annotation does not admit."""
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except Exception:  # not an annotation that pydantic can judge
        return
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"{key}={value!r}: {error.errors()[0]['msg'].lower()}") from error


def _check_values(config: Plain) -> None:
    for name, annotation in _DATA_TYPES.items():
        if name in config["data"]:
            _check_type(config["data"][name], annotation, f"data.{name}")
    for key in _POSITIVE:
        value = OmegaConf.select(OmegaConf.create(config), key)
        if value is not None and value < 1:
            raise ConfigError(f"{key}={value} must be 1 or more")
    for name, stage in config["stages"].items():
        for budget in ("max_steps", "max_epochs"):
            if stage[budget] is not None and stage[budget] < 0:
                raise ConfigError(f"stages.{name}.{budget}={stage[budget]} must be 0 or more")
        if stage["max_steps"] is None and stage["max_epochs"] is None:
            raise ConfigError(
                f"stages.{name} needs a budget: give stages.{name}.max_steps or .max_epochs (0 leaves it out)"
            )


def _create_all(config: Plain, group: str, key: str | None = None) -> dict[str, Any]:
    return {name: create(node, f"{key or group}.{name}") for name, node in config[group].items()}


def _quantizers(quantization: Plain) -> Iterator[tuple[str, Any]]:
    """Each quantizer node of the rules and the attention, under its key."""
    for name, rule in quantization["rules"].items():
        yield from ((f"quantization.rules.{name}.{slot}", rule[slot]) for slot in ("weight", "input") if rule.get(slot))
    for slot in ("query", "key", "probs", "value"):
        if quantization["attention"] and quantization["attention"].get(slot):
            yield f"quantization.attention.{slot}", quantization["attention"][slot]


def _check_teacher(config: Plain, losses: Mapping[str, Any]) -> None:
    if config["teacher"] != Teacher.none.name:
        return
    needing = [name for name, loss in losses.items() if loss.weight != 0 and loss.needs_teacher]
    if needing:
        raise ConfigError(
            f"losses.{needing[0]} needs a teacher and teacher=none: choose losses=task, or teacher=full_precision"
        )
    if config["intervention"]:
        raise ConfigError(
            "intervention needs a teacher and teacher=none: choose intervention=none schedule=none,"
            " or teacher=full_precision"
        )


def _check_schedule(config: Plain, interventions: Mapping[str, Any]) -> None:
    if bool(config["intervention"]) != bool(config["schedule"]):
        given, other = ("intervention", "schedule") if config["intervention"] else ("schedule", "intervention")
        raise ConfigError(f"{given} is set and {other} is not: choose {other}=… as well, or {given}=none")
    if not config["schedule"]:
        return
    unknown = [name for name in create(config["schedule"], "schedule").names if name not in interventions]
    if unknown:
        raise ConfigError(f"schedule names intervention {unknown[0]!r}: {suggest(unknown[0], interventions)}")


def _check_layers(config: Plain) -> None:
    """Layer pairs of losses and layers of interventions lie within the model's depth, where files tell that."""
    depth = _depth(config["model"])
    if depth is None:
        return
    for name, loss in config["losses"].items():
        last = depth if loss.get("site") == "hidden" else depth - 1
        beyond = [pair for pair in loss.get("layers") or [] if not all(0 <= layer <= last for layer in pair)]
        if beyond:
            raise ConfigError(
                f"losses.{name}.layers holds {beyond[0]}, but the model has {depth} layers:"
                f" {loss.get('site')} can be 0 to {last}"
            )
    for name, intervention in config["intervention"].items():
        if beyond := [layer for layer in intervention.get("at") or [] if not 0 <= layer < depth]:
            raise ConfigError(f"intervention.{name}.at holds {beyond[0]}, but the model's layers are 0 to {depth - 1}")


def _depth(model: Plain) -> int | None:
    """The number of layers, from a local folder's config.json or the configured architecture."""
    described = model["architecture"]
    if model["path"] and (local := Path(model["path"]) / "config.json").is_file():
        described = json.loads(local.read_text())
    return next((described[key] for key in ("num_hidden_layers", "n_layers", "n_layer") if key in described), None)
