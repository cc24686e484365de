"""What a user gets at the end of a run: report.md with its pictures, and one table on the terminal."""

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

from qat_lightning.analysis.training_log import StageHistory, read_history
from qat_lightning.io import markdown
from qat_lightning.io.documents import read_yaml
from qat_lightning.io.files import write_text
from qat_lightning.io.screen import printable
from qat_lightning.models.capture import Batch, Signals
from qat_lightning.reports import captions, tables
from qat_lightning.reports.plots.step_sizes import step_size_plot
from qat_lightning.reports.plots.style import own_look
from qat_lightning.reports.plots.training_curves import training_curves
from qat_lightning.reports.sections import (
    comparison_section,
    layer_section,
    map_section,
    norm_section,
    picture,
    range_section,
    weight_sections,
)
from qat_lightning.reports.summary import verdict

TRAINED, EXPORT_FAILED, FINISHED = "trained", "export failed", "finished"
"""The status in `metrics.json`: the stages are finished and the exports are not; an export failed; all is done."""

__all__ = ["StageHistory", "draw_sections", "read_history", "summary_table", "write_report"]


def draw_sections(
    folder: Path,
    results: Mapping[str, Any],
    signals: Mapping[str, Signals],
    batch: Batch,
    tokens: Sequence[str] | None = None,
    classes: Mapping[str, Tensor] | None = None,
) -> list[str]:
    """Write `plots/*.png` into the run folder; returns the blocks of the report that do not depend on exports.

    Args:
        folder: the run folder; its `logs/` are read, and its `analysis/` where callbacks have left something.
        results: metrics.json.
        signals: "teacher", "untrained", "student" (absent where there was none) → `hidden`, `attention.probs`,
            `attention.output`, `attention.value` of one validation batch, and W_O of each layer as
            `attention.projection.weight`; a section that misses something says so.
        tokens: of the batch's first sample, with or without its padding.
        classes: token class → where its tokens are in the batch, see `qat_lightning.analysis.token_classes`.
    """
    with own_look():
        sections = [
            _training(folder, results),
            layer_section(folder, signals, batch),
            map_section(folder, signals, batch, tokens),
            comparison_section(folder, signals, batch, tokens),
            norm_section(folder, signals, batch, classes),
            range_section(folder, signals, batch),
            weight_sections(folder),
            _reproduce(folder, results),
        ]
    return [block for section in sections for block in section if block]


def write_report(folder: Path, results: Mapping[str, Any], drawn: Sequence[str]) -> Path:
    """Write `report.md` into the run folder; returns its path.

    Args:
        results: metrics.json.
        drawn: of `draw_sections`.
    """
    blocks = [block for block in (*_heading(results), *_outcome(results)) if block]
    write_text(folder / "report.md", printable("\n\n".join([*blocks, *drawn]) + "\n"))
    return folder / "report.md"


def summary_table(results: Mapping[str, Any], report: Path | None = None) -> Group:
    """For the terminal, 80 columns: the models with their metric and bytes, the stages, where the report is."""
    arrow = "↑" if results["higher_is_better"] else "↓"
    models = _rich_table(["model", f"{results['metric']} {arrow}", "size", "ratio"], tables.model_rows(results))
    stages = _rich_table(["stage", "steps", "time", "per step"], tables.stage_rows(results))
    title = Text(f"{results['experiment']} · {results['task']} · seed {results['seed']}", style="bold")
    places = {"report": report, "export": report.parent / "export" if report and results.get("export") else None}
    where = [Text(f"{name}: {place}", overflow="fold") for name, place in places.items() if place is not None]
    return Group(title, models, Text(tables.stored(results) + "\n"), stages, *where)


def _rich_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for position, name in enumerate(head):
        # One width for the first column, so that both tables line up.
        shown.add_column(name, justify="right" if position else "left", min_width=11 if position else 24)
    for row in rows:
        shown.add_row(*row, style="bold" if row[0] == "student" else "")
    return shown


def _heading(results: Mapping[str, Any]) -> list[str]:
    return [
        f"# {markdown.code(results['experiment'])} on {markdown.text(results['task'])}",
        f"**{markdown.text(verdict(results))}**",
        _exports(results),
    ]


def _exports(results: Mapping[str, Any]) -> str:
    """Whether the exports are missing; empty where they are not."""
    repeat = "Repeat it by the same command, or by `python -m qat_lightning.export run=DIR`."
    missing = {TRAINED: f"The export has not ended. {repeat}", EXPORT_FAILED: f"**The export failed.** {repeat}"}
    return missing.get(results.get("status", ""), "")


def _outcome(results: Mapping[str, Any]) -> list[str]:
    arrow = "↑" if results["higher_is_better"] else "↓"
    rows = tables.model_rows(results)
    rows = [[f"**{cell}**" for cell in row] if row[0] == "student" else row for row in rows]
    models = markdown.table(
        ["model", f"{markdown.text(results['metric'])} {arrow} (validation)", "bytes", "ratio"], rows
    )
    widths = ["## Bits", tables.bits(results)] if results.get("bits") else []
    notes = [
        tables.undefined(results),
        tables.selection(results),
        tables.sizes(results),
        tables.assisted(results),
    ]
    return ["## Result", models, *notes, *widths]


def _training(folder: Path, results: Mapping[str, Any]) -> list[str]:
    history = read_history(folder, results["steps"])
    table = markdown.table(["stage", "steps", "time", "per step"], tables.stage_rows(results))
    stages = ["## Training", table, tables.padding(results), tables.teacher_cache(results)]
    if not any(stage.rows for stage in history):
        return [*stages, "No curves: the run folder holds no `logs/<stage>/metrics.csv`."]
    figure = training_curves(history, results["metric"], results.get("teacher"), results.get("untrained"))
    drawn = picture(folder, figure, "training", "Loss and metric over the steps")
    told = captions.curves(results["steps"], teacher=results.get("teacher") is not None)
    return [*stages, drawn, told, *_step_sizes(folder, history[-1])]


def _step_sizes(folder: Path, stage: StageHistory) -> list[str]:
    """Where the callback has logged them."""
    figure = step_size_plot(stage)
    if figure is None:
        return []
    return [picture(folder, figure, "step_sizes", "Learned step sizes over the steps"), captions.STEP_SIZES]


def _reproduce(folder: Path, results: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in (results.get("versions") or {}).items())
    facts = [
        "All settings: [`config.yaml`](config.yaml); all numbers: [`metrics.json`](metrics.json)",
        "What was given on the command line: [`overrides.yaml`](overrides.yaml)",
        f"Seed: {results['seed']}",
        f"Precision of the training: {markdown.text(results['precision'])}" if results.get("precision") else "",
        f"SHA-256 of the student's tensors: {markdown.code(results['student_hash'])}",
        f"Versions: {markdown.text(versions)}" if versions else "",
    ]
    command = _command(folder / "overrides.yaml")
    return ["## To reproduce", "\n".join(f"- {fact}" for fact in facts if fact), command]


def _command(overrides: Path) -> str:
    """The command line, where Hydra's list of overrides lies in the run folder."""
    given = read_yaml(overrides) if overrides.is_file() else None
    if not isinstance(given, list):
        return ""
    return markdown.block("bash", [shlex.join(["python", "-m", "qat_lightning", *map(str, given)])])
