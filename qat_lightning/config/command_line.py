"""Prepare the arguments of a command line for Hydra: quote paths, check the options of groups."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException

from qat_lightning.config.schema import CONF, ConfigError

MULTIRUN = ("-m", "--multirun")

PATHS = ("data.path", "data.tokenizer", "model.path", "teacher_cache")
"""Keys whose value is a folder or a hub id."""

WRITTEN = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "output")
"""Keys whose value is one folder or file to write, also in a sweep; `output` belongs to the benchmark."""


def is_override(argument: str) -> bool:
    """Tell whether an argument of a command line is `key=value` or `~key`, and not a flag."""
    return argument.startswith("~") or ("=" in argument and not argument.startswith("-"))


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """Quote the paths of a command line that Hydra's grammar would refuse or read as a list.

    A path can hold spaces, `=`, commas, brackets and letters beyond ASCII; `~` becomes the home folder. A value that Hydra
    already reads as the typed text, as null or as quoted stays unchanged. In a sweep, commas separate the values of a key,
    unless a path with commas exists.

    >>> quote_paths(["data.path=/data/a=b, c", "seed=1"])
    ["data.path='/data/a=b, c'", 'seed=1']
    """
    sweep = any(argument in MULTIRUN or argument.startswith("hydra.mode=") for argument in arguments)
    return [_with_quoted_path(argument, sweep) if is_override(argument) else argument for argument in arguments]


def _with_quoted_path(argument: str, sweep: bool) -> str:
    key, _, value = argument.partition("=")
    name = key.lstrip("+")
    if name not in PATHS + WRITTEN:
        return argument
    several = sweep and name in PATHS and not os.path.exists(os.path.expanduser(value))
    with suppress(HydraException):
        if several and OverridesParser.create().parse_override(argument).is_sweep_override():
            return argument
    values = value.split(",") if several and "," in value else [value]
    return f"{key}={','.join(_quoted(path) for path in values)}"


def _quoted(value: str) -> str:
    """Return a value that Hydra reads as the typed text."""
    path = os.path.expanduser(value)
    try:
        override = OverridesParser.create().parse_override(f"key={path}")
    except HydraException:
        return QuotedString(path, Quote.single).with_quotes()
    read = override._value
    explicit = (
        isinstance(read, QuotedString) or read is None or (isinstance(read, ChoiceSweep) and not read.simple_form)
    )
    return path if explicit or override.value() == path else QuotedString(path, Quote.single).with_quotes()


def put_debug_last(arguments: Sequence[str]) -> list[str]:
    """Move `debug=NAME` behind all groups: Hydra merges them in the order of the arguments, and debugging settings must win.

    >>> put_debug_last(["debug=fast", "+experiment=quickstart", "seed=2"])
    ['+experiment=quickstart', 'seed=2', '+debug=fast']
    """
    debug = [argument for argument in arguments if argument.lstrip("+").startswith("debug=")]
    others = [argument for argument in arguments if argument not in debug]
    return others + [f"+{argument.lstrip('+')}" for argument in debug]


def check_words(arguments: Iterable[str]) -> None:
    """Check the overrides among the arguments of a command line for mistakes whose place Hydra does not name.

    Raises:
        ConfigError: a group's value is not the name of an option or a list of names, or a key's value is {}, which Hydra
            merges into the present value without a change.
        OverrideParseException: an argument cannot be read.
    """
    for override in OverridesParser.create().parse_overrides(list(filter(is_override, arguments))):
        group = override.key_or_group
        if not group:
            raise ConfigError(f"{override.input_line!r} names no key: give key=value or group=option")
        if override.value() == {} and override.type is OverrideType.CHANGE:
            raise ConfigError(f"{override.input_line!r} changes nothing: leave a key out with ~{group}.KEY")
        is_group = group == "hydra" or "/" in group or (CONF / group).is_dir()
        if is_group and not all(map(_is_named, _options(override))):
            choices = ", ".join(sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml")))
            raise ConfigError(
                f"{override.input_line!r}: the group {group} takes the name of an option, or several as [one,other]"
                + (f"; choices: {choices}" if choices else "")
            )


def _options(override: Override) -> Iterator[Any]:
    """Yield the options that an override chooses, for each job of a sweep; none for a deletion, a glob or a mapping."""
    value = override.value()
    if override.is_delete() or isinstance(value, Glob):
        return
    for option in override.sweep_iterator() if override.is_sweep_override() else [value]:
        if not isinstance(option, dict):
            yield option


def _is_named(option: Any) -> bool:
    if isinstance(option, list):
        return all(not isinstance(one, list) and _is_named(one) for one in option)
    name = option.text if isinstance(option, QuotedString) else option
    return isinstance(name, str) and bool(name) and name.isprintable()
