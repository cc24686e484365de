"""Rows of a family's table that name no module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from qat_lightning.models.families import OTHER_HEADS
from qat_lightning.models.module_paths import base_prefix, family


@dataclass(frozen=True)
class Result:
    """A line of the check. refused: the family cannot have it; absent: this model has no such module; both are no failure."""

    check: str
    status: Literal["passed", "refused", "absent", "failed"]
    reason: str = ""


NEEDED = (
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.projection",
    "feedforward.in",
    "feedforward.out",
)
"""Parts that each layer has, query, key and value in one or separately."""


def missing_rows(model: nn.Module) -> Iterator[Result]:
    """Yield each row that names no module, or the module of another row.

    failed: a row that each model needs; absent: one that this model does without, as other models of the family do not.
    """
    table, base = family(model), base_prefix(model)
    if lacks := _lacks(model, base + table.layers):
        yield Result("layers", "failed", lacks)
        return
    layer, needed, optional = f"{base}{table.layers}.0.", dict[str, str](), dict[str, str]()
    for name, path in table.layer_parts.items():
        rows = needed if name in NEEDED or name == table.fused else optional
        rows[f"layer_parts[{name!r}]"] = layer + path
    optional |= {f"base_parts[{name!r}]": base + path for name, path in table.base_parts.items()}
    yield from _named_twice({**needed, **optional})
    needed |= {name: layer + getattr(table, name) for name in ("attention", "output", "residual")}
    if all(_lacks(model, base + path) for path in table.embeddings):
        needed["embeddings"] = base + table.embeddings[0]
    if all(_lacks(model, path) for path in (*table.head_parts.values(), *OTHER_HEADS)):
        needed |= {f"head_parts[{name!r}]": path for name, path in table.head_parts.items()}
    for row, path in (needed | optional).items():
        if lacks := _lacks(model, path):
            yield Result(row, "failed" if row in needed else "absent", lacks)


def _named_twice(rows: dict[str, str]) -> Iterator[Result]:
    """Yield each row that names the module of an earlier one."""
    first: dict[str, str] = {}
    for row, path in rows.items():
        if first.setdefault(path, row) != row:
            yield Result(row, "failed", f"{path!r} is also {first[path]}")


def _lacks(model: nn.Module, path: str) -> str | None:
    """Return what is there in place of the path; None where the path names a module."""
    module, place = model, type(model).__name__
    for name in path.split("."):
        found = getattr(module, name, None)
        if not isinstance(found, nn.Module):
            there = ", ".join(f"{child} ({type(found).__name__})" for child, found in module.named_children())
            return f"{path!r}: {place} has no module {name!r}; it has {there or 'none'}"
        module, place = found, name if module is model else f"{place}.{name}"
    return None
