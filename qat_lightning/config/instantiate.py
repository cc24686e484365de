"""Make objects of configuration: the only call of Hydra's instantiate."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from textwrap import shorten
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf
from pydantic import ConfigDict, TypeAdapter, ValidationError

from qat_lightning.config.allowed_targets import check_made, locate
from qat_lightning.config.schema import ConfigError

SPECIAL = ("_target_", "_partial_")
"""Hydra's names that a node can hold; `_args_`, `_recursive_` and `_convert_` would avoid the checks of arguments."""


def create(node: Any, key: str, **given: Any) -> Any:
    """Make the object that a `_target_` node at `key` describes, with arguments that configuration cannot hold (`given`).

    Raises ConfigError for a target that is not allowed there, an argument that it does not have, a value of another type, or
    one that the object refuses.
    """
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node, resolve=True)  # what is checked is what is made
    check_node(node, key, given)
    try:
        made = instantiate(node, _convert_="all", **given)
    except Exception as error:
        cause = error.__cause__ or error
        foreign = not node["_target_"].startswith("qat_lightning.")
        if isinstance(cause, ValueError | TypeError) or (foreign and not isinstance(cause, OSError | MemoryError)):
            raise ConfigError(_message(key, node, error, cause)) from error
        raise
    check_made(made, key)
    return made


def check_node(node: Any, key: str, given: Mapping[str, Any] | None = None) -> None:
    """Check a node that an object can be made of, and every `_target_` in it (`check_targets`)."""
    check_targets(node, key, given)
    if not (isinstance(node, Mapping) and "_target_" in node):
        raise ConfigError(f"{key}={shorten(repr(node), 80, placeholder=' …')} must hold a _target_ and its arguments")


def _message(key: str, node: Mapping[str, Any], error: Exception, cause: BaseException) -> str:
    """Tell why an object was not made, with the keys of the arguments that the message names."""
    nested = re.search(r"full_key: ([\w.]+)$", str(error))  # how Hydra names a node inside the node
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
    names = {str(name) for name in node if name not in SPECIAL}
    with suppress(ConfigError):
        names.update(*_parameters(locate(node.get("_target_"), key)))
    pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return re.sub(rf"(?<![\w.])({pattern})(?==)", rf"{key}.\1", message) if names else message


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


def create_all(nodes: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Make named objects of named nodes, without those that are null; `key` is the place of the nodes."""
    return {name: create(node, f"{key}.{name}") for name, node in nodes.items() if node is not None}


def check_targets(node: Any, key: str, given: Mapping[str, Any] | None = None) -> None:
    """Raise ConfigError for a `_target_` in `node` that is not allowed, or an argument that is unknown or of another type."""
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
        _check_arguments(locate(node["_target_"], key), node, key, given or {})
    for name, child in node.items():
        check_targets(child, f"{key}.{name}")


def suggest(wrong: str, choices: Iterable[str]) -> str:
    """Name the nearest of some choices to a mistyped name, and all of them.

    >>> suggest("wieght", ["weight", "site"])
    "did you mean 'weight'? choices: site, weight"
    """
    choices = sorted(str(choice) for choice in choices)
    near = difflib.get_close_matches(wrong, choices, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"choices: {', '.join(choices) or 'none'}"


def _check_arguments(target: Any, node: Mapping[str, Any], key: str, given: Mapping[str, Any]) -> None:
    if inspect.isfunction(target) and not node.get("_partial_"):
        raise ConfigError(f"{key}._target_={node['_target_']} is a function: give {key}._partial_=true as well")
    signatures = _parameters(target)
    known = {name: parameter for parameters in reversed(signatures) for name, parameter in parameters.items()}
    names = set(node) - set(SPECIAL)
    if (unknown := sorted(names - known.keys())) and not _passes_on(signatures[-1]):
        raise ConfigError(f"{key}.{unknown[0]} is not an argument of {target.__name__}: {suggest(unknown[0], known)}")
    for name in names & known.keys():
        if not _contains_targets(node[name]):
            check_type(node[name], known[name].annotation, f"{key}.{name}")
    required = {
        name for name, parameter in signatures[0].items()
        if parameter.default is parameter.empty and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }  # fmt: skip
    if not node.get("_partial_") and (missing := sorted(required - names - set(given))):
        raise ConfigError(f"{key}.{missing[0]} must be given: {target.__name__} needs it")


def _parameters(target: Any) -> list[Mapping[str, inspect.Parameter]]:
    """Return the parameters of a constructor or function, and those of base classes that it passes keywords on to."""
    found = [_signature(target)]
    for kind in getattr(target, "__mro__", ())[1:-1]:  # object takes no keywords
        if not _passes_on(found[-1]):
            break
        if "__init__" in vars(kind):
            found.append(_signature(kind))
    return [{name: p for name, p in each.items() if p.kind is not p.VAR_POSITIONAL} for each in found]


def _signature(target: Any) -> Mapping[str, inspect.Parameter]:
    """Return parameters with evaluated annotations, where they can be evaluated."""
    try:
        return inspect.signature(target, eval_str=True).parameters
    except Exception:  # names that exist for type checkers alone
        return inspect.signature(target).parameters


def _passes_on(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def _contains_targets(value: Any) -> bool:
    """Tell whether objects will be made of the value, whose type cannot be judged before."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_contains_targets, value.values()))
    return isinstance(value, list | tuple) and any(map(_contains_targets, value))


def check_type(value: Any, annotation: Any, key: str) -> None:
    """Raise ConfigError for a plain value that the annotation does not admit, such as true or "3" for a number.

    The value is judged as JSON, in which a list can replace a tuple and a text can replace a path, as in a configuration.
    """
    try:
        if annotation is inspect.Parameter.empty or isinstance(annotation, str):
            return
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except Exception:  # pydantic cannot judge this annotation
        return
    try:
        adapter.validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        wrong = "must be made with a _target_" if first["type"] == "needs_python_object" else first["msg"].lower()
        raise ConfigError(f"{key}={value!r}: {wrong}") from error
