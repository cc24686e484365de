"""What a user gets at the end of a run: report.md with its pictures, and one table on the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from qat_lightning.analysis import captions, markdown
from qat_lightning.analysis.errors import layer_errors, sample_map, valid_tokens
from qat_lightning.analysis.history import StageHistory, read_history
from qat_lightning.analysis.plots import attention_map_plot, layer_error_plot, training_curves
from qat_lightning.analysis.verdict import verdict
from qat_lightning.signals import Batch, Signals

__all__ = ["StageHistory", "read_history", "summary_table", "write_report"]

MAPS = "attention.probs"
NAMES = {"teacher": "teacher", "untrained": "quantized, not trained", "student": "student"}
"""How the three models are called in tables and pictures."""


def write_report(
    folder: Path,
    results: Mapping[str, Any],
    signals: Mapping[str, Signals],
    batch: Batch,
    tokens: Sequence[str] | None = None,
) -> Path:
    """Write `report.md` and `plots/*.png` into the run folder; returns the report's path.

    Args:
        folder: the run folder; its `logs/` are read.
        results: metrics.json.
        signals: "teacher", "untrained", "student" (absent where there was none) → `hidden` and `attention.probs` of one
            validation batch.
        tokens: of the batch's first sample, with or without its padding.
    """
    sections = [
        _heading(results),
        _outcome(results),
        _training(folder, results),
        _layers(folder, signals, batch),
        _attention(folder, signals, batch, tokens),
        _reproduce(folder, results),
    ]
    path = folder / "report.md"
    path.write_text("\n\n".join(block for section in sections for block in section if block) + "\n", encoding="utf-8")
    return path


def summary_table(results: Mapping[str, Any], report: Path | None = None) -> Group:
    """For the terminal, 80 columns: the models with their metric and bytes, the stages, where the report is."""
    arrow = "↑" if results["higher_is_better"] else "↓"
    models = _rich_table(["model", f"{results['metric']} {arrow}", "size", "ratio"], markdown.model_rows(results))
    stages = _rich_table(["stage", "steps", "time", "per step"], markdown.stage_rows(results))
    title = Text(f"{results['experiment']} · {results['task']} · seed {results['seed']}", style="bold")
    where = [] if report is None else [Text(f"report: {report}", overflow="fold")]
    return Group(title, models, stages, *where)


def _rich_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for position, name in enumerate(head):
        # One width for the first column, so that both tables line up.
        shown.add_column(name, justify="right" if position else "left", min_width=11 if position else 24)
    for row in rows:
        shown.add_row(*row, style="bold" if row[0] == "student" else "")
    return shown


def _heading(results: Mapping[str, Any]) -> list[str]:
    return [f"# `{results['experiment']}` on {results['task']}", f"**{verdict(results)}**"]


def _outcome(results: Mapping[str, Any]) -> list[str]:
    arrow = "↑" if results["higher_is_better"] else "↓"
    rows = markdown.model_rows(results)
    rows[-1] = [f"**{cell}**" for cell in rows[-1]]
    models = markdown.table(["model", f"{results['metric']} {arrow} (validation)", "bytes", "ratio"], rows)
    widths = ["## Bits", markdown.bits(results)] if results.get("bits") else []
    notes = [markdown.selection(results), markdown.sizes(results), markdown.assisted(results)]
    return ["## Result", models, *notes, *widths]


def _training(folder: Path, results: Mapping[str, Any]) -> list[str]:
    history = read_history(folder, results["steps"])
    stages = ["## Training", markdown.table(["stage", "steps", "time", "per step"], markdown.stage_rows(results))]
    if not any(stage.rows for stage in history):
        return [*stages, "No curves: the run folder holds no `logs/<stage>/metrics.csv`."]
    figure = training_curves(history, results["metric"], results.get("teacher"), results.get("untrained"))
    picture = _picture(folder, figure, "training", "Loss and metric over the steps")
    return [*stages, picture, captions.curves(results["steps"], teacher=results.get("teacher") is not None)]


def _layers(folder: Path, signals: Mapping[str, Signals], batch: Batch) -> list[str]:
    title, teacher = "## Error of each layer", signals.get("teacher") or {}
    compared = {
        NAMES[name]: signals[name] for name in ("untrained", "student") if "hidden" in (signals.get(name) or {})
    }
    if "hidden" not in teacher or not compared:
        return [title, "Not measured: there was no teacher to compare with."]
    try:
        errors = {name: layer_errors(own, teacher, batch) for name, own in compared.items()}
    except ValueError as reason:  # a student of another depth or width than its teacher
        return [title, f"Not measured: {reason}."]
    picture = _picture(folder, layer_error_plot(errors), "layer_errors", "Mean squared error of each layer's output")
    return [title, picture, captions.errors(errors), markdown.error_table(errors)]


def _attention(folder: Path, signals: Mapping[str, Signals], batch: Batch, tokens: Sequence[str] | None) -> list[str]:
    title = "## Attention maps"
    maps = {
        NAMES[name]: [sample_map(layer, batch) for layer in signals[name][MAPS]]
        for name in NAMES
        if MAPS in (signals.get(name) or {})
    }
    if not maps:
        return [title, f"Not captured: no model gave its `{MAPS}`."]
    valid = valid_tokens(batch)
    if tokens is not None and valid is not None and len(tokens) == batch["attention_mask"].shape[1]:
        tokens = [tokens[position] for position in valid.tolist()]
    picture = _picture(
        folder, attention_map_plot(maps, tokens), "attention_maps", "Attention maps, a column for each model"
    )
    return [title, picture, captions.ATTENTION]


def _reproduce(folder: Path, results: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in (results.get("versions") or {}).items())
    facts = [
        "All settings: [`config.yaml`](config.yaml); all numbers: [`metrics.json`](metrics.json)",
        "What was given on the command line: [`overrides.yaml`](overrides.yaml)",
        f"Seed: {results['seed']}",
        f"SHA-256 of the student's tensors: `{results['student_hash']}`",
        f"Versions: {versions}" if versions else "",
    ]
    command = _command(folder / "overrides.yaml")
    return ["## To reproduce", "\n".join(f"- {fact}" for fact in facts if fact), command]


def _command(overrides: Path) -> str:
    """The command line, where Hydra's list of overrides lies in the run folder."""
    given = yaml.safe_load(overrides.read_text(encoding="utf-8")) if overrides.is_file() else None
    if not isinstance(given, list):
        return ""
    return f"```bash\n{shlex.join(['python', '-m', 'qat_lightning', *map(str, given)])}\n```"


def _picture(folder: Path, figure: Figure, name: str, says: str) -> str:
    path = folder / "plots" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return f"![{says}](plots/{name}.png)"
