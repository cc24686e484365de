"""A finished run scored again: its student, its teacher, or what it exported."""

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
from qat_lightning.commands.train.results import split_name, validation_hash
from qat_lightning.config.builders.exports import build_formats, switch
from qat_lightning.config.instantiate import suggest
from qat_lightning.config.schema import ConfigError, Plain, RunConfig
from qat_lightning.exporters.base import ExportFormat, path_of
from qat_lightning.io.documents import read_json
from qat_lightning.io.files import check_plain, finite, write_json
from qat_lightning.reports.summary import score


def evaluate(config: RunConfig, folder: Path, model: str) -> Plain:
    """Score `model` on the validation rows, by the very code that scored it during the run. No other split is read.

    Returns what `evaluation/<model>.json` holds: the metrics, and the figure that the run recorded (of an exported model
    the student's, which it must reach). For other rows than the run's own the file is `evaluation/<model>-<split>.json`,
    and there is no figure to compare with.

    Args:
        config: of the run, with overrides.
        folder: the run folder.
        model: "student", "teacher", or the name of an export format, as "packed" or "onnx".

    Raises:
        ValueError: in words, for a model that the folder does not hold, or that is damaged.
    """
    formats = build_formats(config)
    if model not in (names := ("student", "teacher", *formats)):
        raise ConfigError(f"model={model!r}: {suggest(model, names)}")
    if getattr(formats.get(model), "cpu_only", False):
        config = replace(config, trainer=replace(config.trainer, accelerator="cpu", precision="32-true", devices=1))
    check_plain(folder)
    recorded = _recorded(folder)
    know_the_rank(config)
    run = opened(replace(config, data=_one_split(config.data, recorded)), folder)
    scores = _scores(run, _model(run, model, formats), model)
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
        name = model if own else _name(result, config, recorded)
        write_json(folder / "evaluation" / f"{name}.json", result)
    run.console.print(_shown(result, own))
    return result


def _one_split(data: Plain, recorded: Plain) -> Plain:
    """The data's settings with the validation split as the only one, its classes numbered as in the run."""
    names, chosen = recorded.get("label_names"), {"train_limit": None}
    if "train_split" in data:
        chosen["train_split"] = data["validation_split"]
    if data.get("label_names", names) is None and names:
        chosen["label_names"] = names
    return data | chosen


def _name(result: Plain, config: RunConfig, recorded: Plain) -> str:
    """Of the file for other rows than the run's own: the model, the data where they are others, the split, the limit."""
    task = [] if result["task"] == recorded.get("task", result["task"]) else [result["task"]]
    limit = config.data.get("validation_limit")
    parts = [result["model"], *task, result["split"], *([] if limit is None else [str(limit)])]
    return re.sub(r"[^\w.-]+", "_", "-".join(parts))


def _model(run: Run, model: str, formats: Mapping[str, ExportFormat]) -> nn.Module:
    if model in ("student", "teacher"):
        return run.restored("teacher" if model == "teacher" else "train")
    place = run.folder / EXPORT / path_of(formats[model])
    if not place.exists():
        command = f"python -m qat_lightning.export run={run.folder} {switch(model, on=True)}".strip()
        raise ConfigError(f"{place} does not exist: {command} writes it")
    return formats[model].load(run.folder / EXPORT)


def _scores(run: Run, scored: nn.Module, model: str) -> dict[str, float]:
    """Raises ConfigError where data and model do not fit, whoever finds that out: torch, Lightning, onnxruntime."""
    try:
        return run.scores(scored)
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ConfigError(
            f"model={model} cannot be scored so: {_first_line(error)}; give overrides that fit the model and this machine"
            " (trainer.accelerator=cpu)"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@dataclass(config=ConfigDict(extra="ignore"))
class _Recorded:
    """What `metrics.json` says of the scores, and of the rows that they are for."""

    task: str
    teacher: float | None
    student: float | None
    validation: dict[str, Any]
    label_names: list[str] | None


def _recorded(folder: Path) -> Plain:
    """Empty where the stages are not finished.

    Raises:
        ConfigError: the file is damaged.
    """
    place = folder / "metrics.json"
    if not place.is_file():
        return {}
    try:
        return asdict(TypeAdapter(_Recorded).validate_python(read_json(place)))
    except ValueError as error:
        again = f"the run's own command with hydra.run.dir={folder} writes it again"
        raise ConfigError(f"{place} is damaged: {again}") from error


def _shown(result: Plain, own: bool) -> Group:
    title = Text(f"{result['model']} · {result['task']} · {result['rows']} {result['split']} rows", style="bold")
    shown = Table("metric", "now", "recorded", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, value in result["scores"].items():
        shown.add_row(name, score(value), score(result["recorded"]) if own and name == result["metric"] else "–")
    note = [] if own else [Text("Nothing to compare with: the run's own figure is for other rows, or not recorded.")]
    return Group(title, shown, *note)
