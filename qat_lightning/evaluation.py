"""A finished run scored again: its student, its teacher, or what it exported."""

from __future__ import annotations

import json
import math
from pathlib import Path

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import nn

from qat_lightning.config import ConfigError, Plain, suggest
from qat_lightning.export import load_packed
from qat_lightning.export.onnx import OnnxModel
from qat_lightning.exporting import EXPORT, ONNX, PACKED
from qat_lightning.files import write_json
from qat_lightning.run import Run, first_process, know_the_rank, opened

MODELS = ("student", "teacher", "packed", "onnx")


def evaluate(config: Plain, folder: Path, model: str) -> Plain:
    """Score `model` on the validation rows, by the very code that scored it during the run.

    Returns what `evaluation/<model>.json` holds: the metrics, and the figure that the run recorded (of an exported model
    the student's, which it must reach).

    Args:
        config: of the run, with overrides.
        folder: the run folder.
        model: "student", "teacher", "packed" (export/packed) or "onnx" (export/model.onnx, on the CPU).

    Raises:
        ValueError: in words, for a model that the folder does not hold, or that is damaged.
    """
    if model not in MODELS:
        raise ConfigError(f"model={model!r}: {suggest(model, MODELS)}")
    if model == "onnx":
        config = config | {"trainer": {**config["trainer"], "accelerator": "cpu", "precision": "32-true", "devices": 1}}
    recorded = _recorded(folder, model)
    know_the_rank(config)
    run = opened(config, folder)
    scores = _scores(run, _model(run, model), model)
    result: Plain = {
        "model": model,
        "task": run.data.task,
        "metric": run.data.metric,
        "scores": scores,
        "recorded": recorded,
        "rows": len(run.data.validation_rows),
    }
    if first_process():
        write_json(folder / "evaluation" / f"{model}.json", result)
    run.console.print(_shown(result))
    return result


def _model(run: Run, model: str) -> nn.Module:
    if model in ("student", "teacher"):
        return run.restored("teacher" if model == "teacher" else "train")
    place = run.folder / EXPORT / (PACKED if model == "packed" else ONNX)
    if model == "onnx" and run.data.head == "causal_language_model":
        raise ConfigError("a model that generates text has no ONNX file: model=packed")
    if not place.exists():
        raise ConfigError(
            f"{place} is not there: python -m qat_lightning.export run={run.folder} export.{model}=true makes it"
        )
    if model == "packed":
        return load_packed(place)
    try:
        return OnnxModel(place, run.config["threads"])
    except Exception as error:  # onnxruntime's errors have no common ancestor but this
        raise ConfigError(f"onnxruntime cannot read {place} ({_first_line(error)}): export again") from error


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


def _recorded(folder: Path, model: str) -> float | None:
    """None where the run is not finished."""
    place = folder / "metrics.json"
    if not place.is_file():
        return None
    try:
        score = json.loads(place.read_bytes())["teacher" if model == "teacher" else "student"]
        return math.nan if score is None else float(score)
    except (ValueError, KeyError, TypeError) as error:
        again = f"the run's own command with hydra.run.dir={folder} writes it again"
        raise ConfigError(f"{place} is damaged: {again}") from error


def _shown(result: Plain) -> Group:
    title = Text(f"{result['model']} · {result['task']} · {result['rows']} validation rows", style="bold")
    shown = Table("metric", "now", "recorded", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, value in result["scores"].items():
        counts = name == result["metric"] and result["recorded"] is not None
        shown.add_row(name, f"{value:.4f}", f"{result['recorded']:.4f}" if counts else "–")
    return Group(title, shown)
