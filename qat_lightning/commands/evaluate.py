"""Score the student, the teacher or an export of a finished run again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import nn

from qat_lightning.commands.export import EXPORT
from qat_lightning.commands.train.pipeline import Run, opened
from qat_lightning.commands.train.process_rank import first_process, know_the_rank
from qat_lightning.commands.train.results import of_split, split_name, validation_hash
from qat_lightning.config.builders.exports import build_formats, switch
from qat_lightning.config.instantiate import suggest
from qat_lightning.config.schema import ConfigError, Plain, RunConfig
from qat_lightning.exporters.base import ExportFormat, path_of
from qat_lightning.io.documents import read_json
from qat_lightning.io.files import check_plain, finite, write_json
from qat_lightning.reports.summary import score


def evaluate(config: RunConfig, folder: Path, model: str) -> Plain:
    """Score `model` on the validation rows with the code that scored it during the run. No other split is read.

    Returns the content of `evaluation/<model>.json`: the metrics, and the score that the run recorded (for an export that of
    the student). For other rows than those of the run the file is `evaluation/<model>-<split>.json`, without a recorded
    score. `model` is "student", "teacher", or the name of an export format such as "packed" or "onnx".

    Raises:
        ValueError: the folder does not hold the model, or a file of it is damaged.
    """
    config, formats = choose_model(config, model)
    check_plain(folder)
    recorded = recorded_scores(folder)
    know_the_rank(config)
    settings = of_split(config.data, config.data.get("validation_split", "validation"), recorded.get("label_names"))
    run = opened(replace(config, data=settings), folder)
    scores = _scores(run, load_model(run, model, formats), model)
    own = recorded.get("validation", {}).get("sha256") == validation_hash(run.data)
    result: Plain = {
        "model": model,
        "task": run.data.task,
        "metric": run.data.metric,
        "scores": finite(scores),
        "recorded": recorded["teacher" if model == "teacher" else "student"] if own else None,
        "split": split_name(run.data),
        "rows": len(run.data.validation_rows),
    }
    if first_process():
        name = model if own else _file_name(result, config, recorded)
        write_json(folder / "evaluation" / f"{name}.json", result)
    run.console.print(scores_table(result, own))
    return result


def choose_model(config: RunConfig, model: str) -> tuple[RunConfig, dict[str, ExportFormat]]:
    """Return the configuration that `model` runs in, and the export formats by name; ConfigError for another name."""
    formats = build_formats(config)
    if model not in (names := ("student", "teacher", *formats)):
        raise ConfigError(f"model={model!r}: {suggest(model, names)}")
    if getattr(formats.get(model), "cpu_only", False):
        config = replace(config, trainer=replace(config.trainer, accelerator="cpu", precision="32-true", devices=1))
    return config, formats


def _file_name(result: Plain, config: RunConfig, recorded: Plain) -> str:
    """Return model, data (if not those of the run), split and limit, for rows that are not those of the run."""
    task = [] if result["task"] == recorded.get("task", result["task"]) else [result["task"]]
    limit = config.data.get("validation_limit")
    parts = [result["model"], *task, result["split"], *([] if limit is None else [str(limit)])]
    return re.sub(r"[^\w.-]+", "_", "-".join(parts))


def load_model(run: Run, model: str, formats: Mapping[str, ExportFormat]) -> nn.Module:
    """Load the student, the teacher or an export of a finished run."""
    if model in ("student", "teacher"):
        return run.restored("teacher" if model == "teacher" else "train")
    place = run.folder / EXPORT / path_of(formats[model])
    if not place.exists():
        command = f"python -m qat_lightning.export run={run.folder} {switch(model, on=True)}".strip()
        raise ConfigError(f"{place} does not exist: {command} writes it")
    return formats[model].load(run.folder / EXPORT)


def _scores(run: Run, scored: nn.Module, model: str) -> dict[str, float]:
    """Raise ConfigError if torch, Lightning or onnxruntime cannot run the model on the data."""
    try:
        return run.scores(scored)
    except (ValueError, OSError):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"model={model} cannot run on these data: {reason}. Set overrides that fit the model and this machine"
            " (such as trainer.accelerator=cpu)"
        ) from error


@dataclass(config=ConfigDict(extra="ignore"))
class _Recorded:
    """The scores in `metrics.json`, and the rows that they belong to."""

    task: str
    teacher: float | None
    student: float | None
    validation: dict[str, Any]
    label_names: list[str] | None


def recorded_scores(folder: Path) -> Plain:
    """Read the recorded scores; empty if the stages are not finished. ConfigError if the file is damaged."""
    place = folder / "metrics.json"
    if not place.is_file():
        return {}
    try:
        return asdict(TypeAdapter(_Recorded).validate_python(read_json(place)))
    except ValueError as error:
        again = f"the run's own command with hydra.run.dir={folder} writes it again"
        raise ConfigError(f"{place} is damaged: {again}") from error


def scores_table(result: Plain, own: bool) -> Group:
    """Return the scores beside the recorded one; own: whether the rows are those of the run."""
    title = Text(f"{result['model']} · {result['task']} · {result['rows']} {result['split']} rows", style="bold")
    shown = Table("metric", "now", "recorded", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, value in result["scores"].items():
        shown.add_row(name, score(value), score(result["recorded"]) if own and name == result["metric"] else "–")
    note = (
        [] if own else [Text("No score to compare with: the recorded one belongs to other rows, or none is recorded.")]
    )
    return Group(title, shown, *note)
