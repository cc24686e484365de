"""Configuration → objects, and only those of an allowlist: the one call of Hydra's instantiate."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import re
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from pydantic import ConfigDict, TypeAdapter, ValidationError

from qat_lightning.config.schema import ConfigError

SOURCES = ("qat_lightning.", "torchmetrics.", "lightning.pytorch.", "torch.optim.")
"""Where the dotted path of a `_target_` may begin; nothing else is imported."""

ALLOWED: Mapping[str, str | None] = {
    "qat_lightning.models.convert.": None,
    "qat_lightning.data.": None,
    "qat_lightning.distillation.intervention.": None,
    "qat_lightning.distillation.losses.": None,
    "qat_lightning.quantization.quantizers.": None,
    "qat_lightning.distillation.intervention_schedules.": None,
    "qat_lightning.training.analysis_callbacks.": "lightning.pytorch.callbacks.callback.Callback",
    "qat_lightning.training.callbacks.StepSizeWarmup.": None,
    "qat_lightning.training.lr_schedules.": None,
    "qat_lightning.training.optimizers.": "torch.optim.optimizer.Optimizer",
    "lightning.pytorch.callbacks.": "lightning.pytorch.callbacks.callback.Callback",
    "lightning.pytorch.loggers.": "lightning.pytorch.loggers.logger.Logger",
    "torch.optim.": "torch.optim.optimizer.Optimizer",
    "torchmetrics.classification.": "torchmetrics.metric.Metric",
    "torchmetrics.regression.": "torchmetrics.metric.Metric",
    "torchmetrics.text.perplexity.": "torchmetrics.metric.Metric",  # others there load models, or download
}
"""Where a class may be defined → the class that it must derive from. Judged on the resolved object, since a dotted path can
be an alias; a prefix alone is not enough: `lightning.pytorch.cli` makes anything of a name."""

FUNCTIONS = "qat_lightning.distillation.losses."
"""Functions are allowed from here alone: distances, which compute and nothing else."""

SPECIAL = ("_target_", "_partial_")
"""Hydra's words that a node may hold; `_args_`, `_recursive_` and `_convert_` would go around the checks of arguments."""


def create(node: Any, key: str, **given: Any) -> Any:
    """The object that a `_target_` node describes; `given` are arguments that configuration cannot hold.

    Raises:
        ConfigError: a target outside `ALLOWED`, an argument that it does not know, a value of another type or one that
            the object refuses.
    """
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node, resolve=True)  # what is checked is what is made
    check_targets(node, key, given)
    try:
        return instantiate(node, _convert_="all", **given)
    except Exception as error:
        cause = error.__cause__ or error
        foreign = not str(node.get("_target_", "")).startswith("qat_lightning.")
        if isinstance(cause, ValueError | TypeError) or (foreign and not isinstance(cause, OSError | MemoryError)):
            raise ConfigError(_with_key(key, node, error, cause)) from error
        raise


def _with_key(key: str, node: Mapping[str, Any], error: Exception, cause: BaseException) -> str:
    """The message of an object that was not made, with the key of the argument where the message begins with one."""
    nested = re.search(r"full_key: ([\w.]+)$", str(error))  # Hydra's word for a node within the node
    for name in nested.group(1).split(".") if nested else ():
        if isinstance(node.get(name), Mapping):
            key, node = f"{key}.{name}", node[name]
    message = add_keys(" ".join(str(cause).split()) or type(cause).__name__, node, key)
    return message if message.startswith(f"{key}.") else f"{key}: {message}"


def add_keys(message: str, node: Mapping[str, Any], key: str) -> str:
    """Put the key of a node in front of every `NAME=` in a message whose NAME is an argument of the node's class.

    >>> node = {"_target_": "qat_lightning.data.TextClassificationData"}
    >>> add_keys("label_column='x' is not a column: give label_column=label", node, "data")
    "data.label_column='x' is not a column: give data.label_column=label"
    """
    names = "|".join(map(re.escape, sorted(_arguments(node), key=len, reverse=True)))
    return re.sub(rf"(?<![\w.])({names})(?==)", rf"{key}.\1", message) if names else message


@contextmanager
def keys_in_messages(node: Mapping[str, Any], key: str) -> Iterator[None]:
    """Within the block, raise a ValueError that names arguments of the node's class as a ConfigError that names their keys."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        message = add_keys(str(error), node, key)
        if message == str(error):
            raise
        raise ConfigError(message) from error


def _arguments(node: Mapping[str, Any]) -> set[str]:
    """Names of the node and of the constructor's arguments, those that it passes on to its base classes among them."""
    names = {str(name) for name in node if not str(name).startswith("_")}
    if not isinstance(node.get("_target_"), str):
        return names
    try:
        target = get_object(node["_target_"])
    except Exception:  # a target that is refused elsewhere
        return names
    makers = [vars(kind).get("__init__", object.__init__) for kind in getattr(target, "__mro__", ())] or [target]
    return names.union(*(inspect.signature(make).parameters for make in makers)) - {"self", "args", "kwargs"}


def create_all(nodes: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Named nodes → named objects, null ones left out; `key` is where the nodes stand."""
    return {name: create(node, f"{key}.{name}") for name, node in nodes.items() if node is not None}


def check_targets(node: Any, key: str, given: Mapping[str, Any] | None = None) -> None:
    """Every `_target_` below `node`: allowed, known arguments, plain values of the annotated types."""
    if isinstance(node, str) and "${" in node:
        # Hydra would resolve it after the checks, and ${oc.create:…} into another target.
        raise ConfigError(f"{key}={node!r} is an interpolation within a value: write the value itself")
    if isinstance(node, list | tuple):
        for index, child in enumerate(node):
            check_targets(child, f"{key}.{index}")
    if not isinstance(node, Mapping):
        return
    for name in node:
        if not isinstance(name, str) or (name.startswith("_") and name.endswith("_") and name not in SPECIAL):
            raise ConfigError(f"{key} holds the name {name!r}: only names of arguments, {' and '.join(SPECIAL)}")
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
    if not isinstance(target, str) or not target.startswith(SOURCES):
        raise refused
    if not all(part.isidentifier() and not part.startswith("_") for part in target.split(".")):
        raise refused
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}._target_={target!r} does not exist: {error}") from error
    if not _is_allowed(found) or get_object(target) is not found:  # Hydra finds the same
        raise refused
    return found


def _is_allowed(found: Any) -> bool:
    if inspect.isfunction(found):
        return f"{found.__module__}.".startswith(FUNCTIONS)
    if not inspect.isclass(found):
        return False
    own, *above = [f"{kind.__module__}.{kind.__qualname__}" for kind in found.__mro__]
    return any(f"{own}.".startswith(place) and base in (None, *above) for place, base in ALLOWED.items())


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
        if not _makes(node[name]):
            check_type(node[name], hints[name], f"{key}.{name}")
    required = {
        n for n, p in parameters.items() if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    if not node.get("_partial_") and (missing := sorted(required - names - set(given))):
        raise ConfigError(f"{key}.{missing[0]} must be given: {target.__name__} needs it")


def _makes(value: Any) -> bool:
    """Whether objects are made of the value, so that its type is not yet there to be judged."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_makes, value.values()))
    return isinstance(value, list | tuple) and any(map(_makes, value))


def check_type(value: Any, annotation: Any, key: str) -> None:
    """Refuse a plain value that the annotation does not admit: neither true nor "3" is a number.

    Judged as JSON, in which a list may stand for a tuple and a text for a path, as in a configuration.
    """
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except Exception:  # not an annotation that pydantic can judge
        return
    try:
        adapter.validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        wrong = "must be made with a _target_" if first["type"] == "needs_python_object" else first["msg"].lower()
        raise ConfigError(f"{key}={value!r}: {wrong}") from error
