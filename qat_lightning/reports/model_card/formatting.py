"""How a card writes lists of names, shares and names of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qat_lightning.io.markdown import code

Node = Mapping[str, Any]
"""A part of a configuration."""


def class_of(node: Node) -> str:
    """The class's own name."""
    return str(node.get("_target_") or "").rpartition(".")[2]


def codes(texts: Sequence[str]) -> str:
    return ", ".join(map(code, texts))


def percent(share: float | None) -> str:
    """100 % only where all are."""
    return "–" if share is None else f"{100 if share == 1 else min(round(100 * share, 2), 99.99):g} %"
