"""Write report.md with its plots, and the table of results for the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from qat_lightning.io.documents import read_yaml
from qat_lightning.io.files import write_text
from qat_lightning.io.markdown import Markdown, block, table
from qat_lightning.models.capture import Batch, Signals
from qat_lightning.reports import sections, tables
from qat_lightning.reports.plots.style import default_style
from qat_lightning.reports.rendering import render
from qat_lightning.reports.summary import verdict

TRAINED, EXPORT_FAILED, GATE_MISSED, FINISHED = "trained", "export failed", "gate missed", "finished"
"""The status in `metrics.json`: the stages are finished and the exports are not; an export failed; all is done, but the student
missed a limit of `gate`; all is done."""

Drawn = Mapping[str, Any]


def draw_sections(
    folder: Path,
    results: Mapping[str, Any],
    signals: Mapping[str, Signals],
    batch: Batch,
    tokens: Sequence[str] | None = None,
    classes: Mapping[str, Tensor] | None = None,
) -> Drawn:
    """Write `plots/*.png` into the run folder; return the part of the report's content that does not depend on exports.

    Args:
        folder: the run folder; `logs/` and `analysis/` are read.
        results: metrics.json.
        signals: "teacher", "untrained", "student" (absent if there was none) → `hidden`, `attention.probs`,
            `attention.output`, `attention.value` of one validation batch, and W_O of each layer as
            `attention.projection.weight`; a section without its signals gives the reason.
        tokens: the tokens of the batch's first sample, with or without its padding.
        classes: token class → the positions of its tokens in the batch, see `qat_lightning.analysis.token_classes`.
    """
    with default_style():
        drawn = list(sections.draw_all(sections.Captured(folder, signals, batch, tokens, classes)))
        training = sections.draw_training(folder, results)
        confusion = sections.draw_confusion(folder, results)
    file = folder / "overrides.yaml"
    overrides = read_yaml(file) if file.is_file() else None
    words = ["python", "-m", "qat_lightning", *map(str, overrides)] if isinstance(overrides, list) else []
    command = block("bash", [shlex.join(words)]) if words else ""
    return {**training, "confusion": confusion, "sections": drawn, "command": command}


def write_report(folder: Path, results: Mapping[str, Any], drawn: Drawn) -> Path:
    """Write `report.md` into the run folder, of metrics.json and the result of `draw_sections`; return its path."""
    context = tables.common_context(results)
    rows = [
        [Markdown(f"**{cell}**") for cell in row] if row[0] == "student" else row for row in tables.model_rows(results)
    ]
    page = render(
        "report.md.jinja",
        results=results,
        verdict=verdict(results),
        models=table(["model", f"{results['metric']} {context['arrow']} (validation)", "bytes", "ratio"], rows),
        bits=tables.bits(results.get("bits") or {}),
        padding=tables.padding(results),
        gate=tables.gate(results),
        answers=tables.answers(results),
        tests=table(*tables.test_rows(results), left=1) if results.get("test") else "",
        **context,
        **dict(drawn),
    )
    write_text(folder / "report.md", page)
    return folder / "report.md"


def summary_table(results: Mapping[str, Any], report: Path | None = None) -> Group:
    """Format the models with metric and bytes, the stages, and the place of the report, for a terminal of 80 columns."""
    arrow = "↑" if results["higher_is_better"] else "↓"
    models = _terminal_table(["model", f"{results['metric']} {arrow}", "size", "ratio"], tables.model_rows(results))
    agreement = [Text(tables.agreement(results) + "\n")] if results.get("answers") else []
    stages = _terminal_table(["stage", "steps", "time", "per step"], tables.stage_rows(results))
    title = Text(f"{results['experiment']} · {results['task']} · seed {results['seed']}", style="bold")
    places = {"report": report, "export": report.parent / "export" if report and results.get("export") else None}
    where = [Text(f"{name}: {place}", overflow="fold") for name, place in places.items() if place is not None]
    tests = [_terminal_table(*tables.test_rows(results))] if results.get("test") else []
    return Group(title, models, *tests, *agreement, Text(tables.storage(results) + "\n"), stages, *where)


def _terminal_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for position, name in enumerate(head):
        # the same width for the first column of both tables, so that they line up
        shown.add_column(name, justify="right" if position else "left", min_width=11 if position else 24)
    for row in rows:
        shown.add_row(*row, style="bold" if row[0] == "student" else "")
    return shown
