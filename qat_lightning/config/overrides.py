"""The words of a command line that choose among a group's options, checked before Hydra composes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, QuotedString

from qat_lightning.config.schema import CONF, ConfigError


def is_override(word: str) -> bool:
    """Whether a word of a command line is `key=value` or `~key`, and no flag."""
    return word.startswith("~") or ("=" in word and not word.startswith("-"))


def check_words(words: Iterable[str]) -> None:
    """Hydra looks for an option by whatever it is given, and fails at what is no name without saying where.

    Args:
        words: of the command line, flags among them.

    Raises:
        ConfigError: a group that is given anything but the name of an option, or a list of names.
        OverrideParseException: a word that cannot be read.
    """
    for override in OverridesParser.create().parse_overrides([word for word in words if is_override(word)]):
        group = override.key_or_group
        if not group:
            raise ConfigError(f"{override.input_line!r} names no key: give key=value or group=option")
        is_group = group == "hydra" or "/" in group or (CONF / group).is_dir()
        if is_group and not all(map(_is_named, _options(override))):
            choices = ", ".join(sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml")))
            raise ConfigError(
                f"{override.input_line!r}: the group {group} takes the name of an option, or several as [one,other]"
                + (f"; choices: {choices}" if choices else "")
            )


def _options(override: Override) -> Iterator[Any]:
    """What is chosen, by each job of a sweep; nothing for a deletion, a pattern, or keys as {key: value}."""
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
