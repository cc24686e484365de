"""Modules that run more than once in a forward pass: which call is the signal of which layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from qat_lightning.models.module_paths import family, layer_paths

Hook = Callable[..., Any]


def calls(model: nn.Module, paths: Iterable[str]) -> dict[str, list[int | None]]:
    """Map each path to the position in `paths` of each of its calls in a forward pass, in their order.

    A layer that is shared has one path at several positions. None: a call on relative positions instead of tokens.

    Args:
        paths: of one site, first layer to last.
    """
    twice, found = _called_on_positions(model), dict[str, list[int | None]]()
    for position, path in enumerate(paths):
        found.setdefault(path, []).extend([position, None] if path in twice else [position])
    return found


def _called_on_positions(model: nn.Module) -> set[str]:
    """Return the projections of queries and keys, if they project relative positions as well."""
    switch = family(model).projects_positions
    if switch is None or not getattr(model.config, switch, False):
        return set()
    parts = family(model).layer_parts
    return {f"{layer}.{parts[f'attention.{name}']}" for layer in layer_paths(model) for name in ("query", "key")}


def by_call(positions: Sequence[int | None], hooks: Mapping[int, Hook]) -> Hook:
    """Return one hook for a module with these calls: at each call it is the hook of that position, where there is one."""
    if len(positions) == 1 and (only := positions[0]) is not None:
        return hooks[only]
    turn = 0

    def hook(*arguments: Any) -> Any:
        nonlocal turn
        position, turn = positions[turn], (turn + 1) % len(positions)
        chosen = None if position is None else hooks.get(position)
        return None if chosen is None else chosen(*arguments)

    return hook
