"""Check a configuration before anything is loaded: each value, and the values together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from math import inf
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

from qat_lightning.config.allowed_targets import KEY
from qat_lightning.config.instantiate import add_keys, check_node, check_type, create, create_all, suggest
from qat_lightning.config.schema import (
    DECIDED_BY_RUN,
    LARGEST,
    ConfigError,
    ModelConfig,
    Plain,
    QuantizationConfig,
    RunConfig,
    TaskLossConfig,
    Teacher,
    TrainerConfig,
    check_bounds,
    parse_size,
)
from qat_lightning.io.documents import read_json

AGAIN = "copy the file again, or give another model.path"

FORMAT_ARGUMENTS = dict.fromkeys(("unquantized_dtype", "ternary_encoding", "quantizers", "threads"))
"""What a run gives to export formats that accept it; see `builders.exports`."""

STARTED_FOR_EACH_STAGE = ("ddp_spawn", "ddp_fork", "ddp_notebook")

BESIDE_BF16 = ("32-true", "32", "bf16-mixed", "bf16", "bf16-true")
"""The trainer's precisions that a teacher in bfloat16 goes with."""


def check(config: RunConfig) -> None:
    """Raise ConfigError, with the key and its choices, for what can be known to be wrong before data and models are loaded."""
    _check_known(config)
    check_bounds(config)
    _check_values(config)
    _check_architecture(config.model.architecture)
    _check_trainer(config.trainer)
    _check_task_loss(config.task_loss)
    losses = create_all(config.losses, "losses")
    interventions = create_all(config.intervention, "intervention")
    schedule = create(config.intervention_schedule, "intervention_schedule") if config.intervention_schedule else None
    create(config.lr_scheduler, "lr_scheduler")
    groups = {"callbacks": config.callbacks, "logger": config.logger, "export.formats": config.export.formats}
    for key, name, node in ((key, name, node) for key, nodes in groups.items() for name, node in nodes.items()):
        if node is not None:
            check_node(node, f"{key}.{name}", FORMAT_ARGUMENTS if key == "export.formats" else None)
    create_all(config.quantization.rules, "quantization.rules")
    if config.quantization.attention is not None:
        create(config.quantization.attention, "quantization.attention")
    for key, quantizer in quantizer_nodes(config.quantization):
        create(quantizer | {"_partial_": False}, key)
    if not any(loss.weight for loss in losses.values()):
        raise ConfigError("no loss is left: give one of losses a weight above 0, or choose losses=…")
    _check_teacher(config, losses)
    _check_schedule(config, interventions, schedule)
    _check_random(config)
    _check_layers(config.model)
    _check_optimizer(config.optimizer)
    create(config.data, "data")  # last: its module imports Lightning, which takes seconds


def unknown_key(key: str, choices: Iterable[str]) -> str:
    """Write the message for a key that the configuration does not have.

    >>> unknown_key("trainer.max_steps", ["devices"])
    'trainer.max_steps is decided by the run: give stages.STAGE.max_steps'
    """
    group, _, name = key.rpartition(".")
    if key == KEY:
        return f"{KEY} can be given on the command line only, never in a file"
    if group == "trainer" and name in DECIDED_BY_RUN:
        return f"{key} is decided by the run: give {DECIDED_BY_RUN[name]}"
    return f"unknown key {key!r}: {suggest(name, choices)}"


def _check_known(node: Any, prefix: str = "") -> None:
    """Refuse a key that a `+` has added to a group whose schema names all keys."""
    known = [field.name for field in fields(node)]
    for name, child in vars(node).items():
        if name not in known:
            raise ConfigError(unknown_key(f"{prefix}{name}", known))
        if is_dataclass(child):
            _check_known(child, f"{prefix}{name}.")


def _check_task_loss(given: TaskLossConfig) -> None:
    weights = given.class_weights
    numbers = isinstance(weights, list) and all(isinstance(each, int | float) and 0 < each < inf for each in weights)
    if weights not in (None, "balanced") and not numbers:
        raise ConfigError(f"task_loss.class_weights={weights!r} must be balanced, or a list of positive numbers")


def _check_values(config: RunConfig) -> None:
    check_type(config.trainer.deterministic, bool | Literal["warn"] | None, "trainer.deterministic")
    check_type(config.quantization.bits, dict[str, int] | None, "quantization.bits")
    check_type(config.model.student_layers, list[int] | None, "model.student_layers")
    check_type(config.stages.intervene.target_modules, list[str] | None, "stages.intervene.target_modules")
    if config.compile and config.activation_checkpointing:
        raise ConfigError("compile=true and activation_checkpointing=true exclude each other: leave one of them out")
    for glob, width in (config.quantization.bits or {}).items():
        if not 1 <= width <= 8:
            raise ConfigError(f"quantization.bits gives {glob!r} {width}: give a whole number from 1 to 8")
    budget, widths = config.quantization.budget, config.quantization.budget_widths
    if budget is not None:
        parse_size(budget, "quantization.budget")
        if config.quantization.bits:
            raise ConfigError("quantization.budget chooses what quantization.bits gives: leave one of them out")
        if not widths or not all(1 <= width <= 8 for width in widths):
            raise ConfigError(f"quantization.budget_widths={widths} must be a list of whole numbers from 1 to 8")
    if config.gate.bytes is not None:
        parse_size(config.gate.bytes, "gate.bytes")
    if config.gate.agreement is not None and config.data.get("num_labels") == 1:
        raise ConfigError("gate.agreement compares classes, and num_labels=1 is a regression: use gate.metric_drop")
    for name, stage in vars(config.stages).items():
        if getattr(stage, "target_modules", None) == []:
            raise ConfigError(f"stages.{name}.target_modules=[] quantizes nothing: give globs, or null for all")
        if stage.max_steps is None and stage.max_epochs is None:
            raise ConfigError(f"stages.{name} needs a budget: give stages.{name}.max_steps or .max_epochs (0 skips it)")


def _check_architecture(architecture: Plain) -> None:
    """Check sizes, counts and dropout rates, which transformers does not check."""
    for name, value in architecture.items():
        size = re.fullmatch(r".*_size|num_.*|n_.*|max_position_embeddings|d_model", name)
        least = 0 if name == "type_vocab_size" else 1  # DeBERTa-v3 has no token types
        if size and value is not None and not (type(value) is int and least <= value <= LARGEST):
            raise ConfigError(
                f"model.architecture.{name}={shorten(repr(value), 80)} must be a whole number, {least} or more"
            )
        if "dropout" in name and isinstance(value, int | float) and not 0 <= value <= 1:
            raise ConfigError(f"model.architecture.{name}={value} must be 0 or more, at most 1")


def _check_trainer(trainer: TrainerConfig) -> None:
    """Check what Lightning's Trainer accepts, or refuses too late."""
    if trainer.strategy.startswith(STARTED_FOR_EACH_STAGE):
        raise ConfigError(f"trainer.strategy={trainer.strategy} loses its processes' state: set trainer.strategy=ddp")
    number = trainer.devices
    with suppress(TypeError, ValueError, OverflowError):
        number = int(number)
    listed = isinstance(number, list) and number and all(type(index) is int and index >= 0 for index in number)
    if not (listed or number in ("auto", -1) or (type(number) is int and 1 <= number <= LARGEST)):
        raise ConfigError(f"trainer.devices={trainer.devices!r} must be 1 or more, auto, -1 (all), or a list")
    batches = trainer.limit_val_batches
    count, share = type(batches) is int and batches >= 1, type(batches) is float and 0 < batches <= 1
    if not (batches is None or count or share):
        raise ConfigError(f"trainer.limit_val_batches={batches!r} must be a number, 1 or more, or a share, at most 1.0")


def _check_optimizer(node: Plain) -> None:
    """Make an optimizer for a matrix and a vector, in two groups as in training, and take a step with a gradient of 1."""
    import torch

    for name in {"lr", "weight_decay", "eps"} & node.keys():
        if isinstance(node[name], int | float) and not 0 <= node[name] <= 10:
            raise ConfigError(f"optimizer.{name}={node[name]} must be 0 or more, at most 10")
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 2), (2,))]
    groups = [{"params": [parameter], "weight_decay": node.get("weight_decay", 0.0)} for parameter in parameters]
    on_a_device = {"capturable": False} if node.get("capturable") and torch.cuda.is_available() else {}
    given = ", ".join(f"{name}={value}" for name, value in node.items() if not name.startswith("_"))
    try:
        optimizer = create(node | on_a_device, "optimizer")(groups)
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        called: list[torch.Tensor] = []

        def closure() -> torch.Tensor:
            called.append(torch.zeros(()))
            return called[0]

        optimizer.step(closure)
    except ConfigError:
        raise
    except Exception as error:  # any class: optimizers of other libraries raise it
        message = add_keys(" ".join(str(error).split()), node, "optimizer")
        raise ConfigError(message if message.startswith("optimizer.") else f"optimizer ({given}): {message}") from error
    if not called:
        raise ConfigError("optimizer: its step does not call the closure that it is given, which computes the gradient")
    if not all(((parameter <= 0) & parameter.isfinite()).all() for parameter in parameters):
        raise ConfigError(f"optimizer ({given}): its first step does not go down the slope of the loss")


def quantizer_nodes(quantization: QuantizationConfig) -> Iterator[tuple[str, Any]]:
    """Yield the key and the node of each quantizer of the rules and the attention."""
    holders = [
        *((f"rules.{name}", rule) for name, rule in quantization.rules.items()),
        ("attention", quantization.attention),
    ]
    for place, holder in holders:
        for slot in ("weight", "input", "query", "key", "probs", "value"):
            if holder is not None and holder.get(slot) is not None:
                yield f"quantization.{place}.{slot}", holder[slot]


def _check_teacher(config: RunConfig, losses: Mapping[str, Any]) -> None:
    """Check that what needs a teacher has one, which is used, in a precision that fits the trainer's."""
    needing = {f"losses.{name}": "losses=task" for name, loss in losses.items() if loss.weight and loss.needs_teacher}
    if config.intervention:
        needing["intervention"] = "intervention=none intervention_schedule=none"
    without, precision = config.teacher is Teacher.none, config.teacher_precision and config.teacher_precision.name
    for key, value in {"teacher_precision": precision, "teacher_cache": config.teacher_cache}.items():
        if value is not None and (without or not needing):
            reason = "teacher=none" if without else "no loss or intervention uses the teacher"
            raise ConfigError(f"{key}={value} and {reason}: leave {key} out")
    if config.teacher_cache is not None and not config.teacher_cache.strip():
        raise ConfigError("teacher_cache is empty: give a folder, or null for none")
    if precision and config.trainer.precision not in BESIDE_BF16:
        raise ConfigError(f"teacher_precision={precision} requires trainer.precision={', '.join(BESIDE_BF16)}")
    for key, choice in needing.items() if without else ():
        raise ConfigError(f"{key} needs a teacher and teacher=none: choose {choice}, or teacher=full_precision")


def _check_random(config: RunConfig) -> None:
    """Check that a teacher with random weights is trained, unless teacher=none."""
    for key in ("max_steps", "max_epochs"):
        untrained = getattr(config.stages.teacher, key) == 0 and not config.model.pretrained
        if untrained and config.teacher is not Teacher.none:
            raise ConfigError(f"stages.teacher.{key}=0 leaves a teacher with random weights: give model.path=…")


def _check_schedule(config: RunConfig, interventions: Mapping[str, Any], schedule: Any) -> None:
    if bool(config.intervention) != bool(schedule):
        given, other = sorted(("intervention", "intervention_schedule"), reverse=bool(schedule))
        raise ConfigError(f"{given} is set and {other} is not: choose {other}=… as well, or {given}=none")
    for name in schedule.names if schedule else ():
        if name not in interventions:
            raise ConfigError(f"intervention_schedule names intervention {name!r}: {suggest(name, interventions)}")


def _check_layers(model: ModelConfig) -> None:
    """Check the layers of the student against the teacher's depth, if that is known."""
    depth, chosen = _depth(model), model.student_layers
    if chosen is not None and len(set(chosen)) < len(chosen):
        raise ConfigError(f"model.student_layers={chosen} names a layer twice: name each layer once")
    if depth and chosen is not None and (not chosen or not all(0 <= layer < depth for layer in chosen)):
        raise ConfigError(f"model.student_layers={chosen} must name some of the model's layers, 0 to {depth - 1}")


def _depth(model: ModelConfig) -> int | None:
    """Return the number of layers, from a local config.json or the configured architecture; None for a hub id."""
    place, described = Path(model.path or "") / "config.json", model.architecture
    if model.path and place.is_file():
        try:
            described = read_json(place)
            if not isinstance(described, dict):
                raise ValueError("it is not a JSON object")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{str(place)!r} is damaged ({' '.join(str(error).split())}): {AGAIN}") from error
    elif model.pretrained:
        return None
    key = next((key for key in ("num_hidden_layers", "n_layers", "n_layer") if key in described), None)
    if key is not None and not (type(described[key]) is int and described[key] > 0):
        raise ConfigError(f"{str(place)!r} is damaged ({key}={described[key]!r} is not 1 or more layers): {AGAIN}")
    return described[key] if key else None
