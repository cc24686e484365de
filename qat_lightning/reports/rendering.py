"""Render the templates of report.md and of the model card; every inserted value is escaped."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from qat_lightning.io import markdown
from qat_lightning.io.screen import printable
from qat_lightning.reports.summary import score


@cache
def _environment() -> Environment:
    """Return the environment of the templates, which escapes values that are not `Markdown`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        finalize=_escaped,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=ChainableUndefined,
    )
    environment.filters |= {
        "code": markdown.code, "codes": markdown.codes, "bytes": markdown.human_bytes, "score": score, "percent": percent,
        "thousands": lambda number: f"{number:,}", "markdown": markdown.Markdown,
    }  # fmt: skip
    environment.globals |= {"table": markdown.table, "block": markdown.block}
    return environment


def render(template: str, **context: Any) -> str:
    """Fill `templates/<template>`; at most one empty line separates two blocks."""
    page = _environment().get_template(template).render(context)
    return printable(re.sub(r"\n{3,}", "\n\n", page).strip() + "\n")


def _escaped(value: object) -> str:
    """Escape a value; one space before and after it stays."""
    if isinstance(value, markdown.Markdown) or not isinstance(value, str):
        return markdown.escaped(value)
    return " " * value[:1].isspace() + markdown.text(value) + " " * value[-1:].isspace()


def percent(share: float | None) -> str:
    """Format a share, 100 % only if it is exactly 1."""
    return "–" if share is None else f"{100 if share == 1 else min(round(100 * share, 2), 99.99):g} %"
