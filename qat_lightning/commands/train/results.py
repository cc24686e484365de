"""Collect the figures of a finished run, and the signals that its report shows."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from qat_lightning.analysis.attention_norms import projection_weights
from qat_lightning.analysis.token_masks import class_ids, token_classes
from qat_lightning.commands.train.pipeline import Run
from qat_lightning.config.builders.models import load_data
from qat_lightning.config.schema import ConfigError, Plain
from qat_lightning.data.base import TaskData
from qat_lightning.io.documents import read_json
from qat_lightning.io.files import finite
from qat_lightning.models.capture import SignalCapture, Signals
from qat_lightning.models.convert import open_attention
from qat_lightning.models.module_paths import has_site
from qat_lightning.models.size import bits, size, tensors_hash
from qat_lightning.reports.description import describe_losses, describe_quantizers
from qat_lightning.reports.report import TRAINED

PICTURED = ("hidden", "attention.probs", "attention.output", "attention.value")
"""The sites that the report shows."""


def test_results(run: Run, models: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Plain:
    """Return split → rows, and the metrics of each model.

    Args:
        models: "teacher", "untrained", "student" → split → metric → score.
    """
    return {
        split: {"rows": len(data.validation_rows), **{name: finite(scores[split]) for name, scores in models.items()}}
        for split, data in run.tests.items()
    }


def results_of(run: Run, student: nn.Module, untrained: float) -> Plain:
    """Return the content of `metrics.json` before the exports. A score that is not a finite number is None.

    Args:
        untrained: the metric of the student before training.
    """
    weight, last = size(student), run.outcomes["train"]
    intervene = run.outcomes.get("intervene")
    return {
        "experiment": run.config.experiment,
        "task": run.data.task,
        "head": run.data.head,
        "metric": run.data.metric,
        "higher_is_better": run.data.higher_is_better,
        "teacher": run.outcomes["teacher"].score,
        "untrained": finite(untrained),
        "student": last.score,
        "student_last_step": last.last_score,
        "assisted": intervene.assisted if intervene else None,
        "validation": {
            "split": split_name(run.data),
            "rows": len(run.data.validation_rows),
            "sha256": validation_hash(run.data),
        },
        "label_names": run.data.label_names,
        "seed": run.config.seed,
        "precision": run.config.trainer.precision,
        "steps": {name: outcome.steps for name, outcome in run.outcomes.items()},
        "seconds": {name: outcome.seconds for name, outcome in run.outcomes.items()},
        "padding": run.padding(),
        "bytes": {
            "float32": weight.float32,
            "packed": weight.packed,
            "ratio": round(weight.ratio, 3),
            "checkpoint": last.checkpoint_bytes,
        },
        "bits": bits(student),
        "quantizers": describe_quantizers(student),
        "losses": describe_losses(run.objective.losses),
        "student_hash": tensors_hash(student),
        "versions": {name: version(name) for name in ("qat-lightning", "torch", "lightning", "transformers")},
        "teacher_cache": None if run.cache is None else run.cache.figures(),
        "export": None,
        "status": TRAINED,
    }


def split_name(data: TaskData) -> str:
    """Return the name of the split that models are scored on."""
    return getattr(data, "splits", {}).get("validation", "validation")


def of_split(settings: Plain, split: str, label_names: Sequence[str] | None) -> Plain:
    """Return the data's settings with `split` in place of both splits, all its rows, and the classes in the order of the run."""
    chosen: Plain = {name: split for name in ("train_split", "validation_split") if name in settings}
    if label_names and settings.get("label_names", label_names) is None:
        chosen["label_names"] = list(label_names)
    return settings | chosen | {"train_limit": None}


def read_test_splits(run: Run) -> dict[str, TaskData]:
    """Read the splits of `data.test_split`: name → data whose validation rows are those of the split.

    Raises:
        ConfigError: a split that does not exist, or that has no labels.
    """
    read = {}
    for split in run.data.test_splits:
        settings = of_split(run.scoring.data, split, run.data.label_names) | {"validation_limit": None}
        if "validation_split" not in settings:
            raise ConfigError(f"data.test_split={split}: {run.data.task} has no named splits")
        try:
            read[split] = load_data(replace(run.scoring, data=settings))
        except ValueError as error:
            raise ConfigError(f"data.test_split={split}: {error}") from error
    return read


def validation_hash(data: TaskData) -> str:
    """Return the SHA-256 of the rows that models are scored on, as the model reads them."""
    alone = copy.copy(data)
    alone.train_rows = data.validation_rows
    return alone.fingerprint()


def check_recorded(folder: Path, results: Plain) -> None:
    """Check that the student is the one that `metrics.json` of an earlier start describes, if there is one.

    Raises:
        ValueError: the checkpoint holds another student, whose scores are not known.
    """
    place = folder / "metrics.json"
    try:
        recorded = read_json(place)["student_hash"]
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: it is written again
        return
    if recorded != results["student_hash"]:
        raise ValueError(
            f"{folder / 'checkpoints' / 'train.safetensors'} does not hold the student that {place} describes: copy it"
            f" again, or remove it and train.json beside it, and the same command trains it again"
        )


@torch.no_grad()
def watch(model: nn.Module, batch: Mapping[str, Tensor]) -> Signals:
    """Return the signals that the report shows, on the CPU."""
    device, training = next(model.parameters()).device, model.training
    observe = SignalCapture(open_attention(model).eval(), [site for site in PICTURED if has_site(model, site)])
    signals = observe({name: value.to(device) for name, value in batch.items()})
    signals["attention.projection.weight"] = projection_weights(model)
    model.train(training)
    return {site: [signal.float().cpu() for signal in layers] for site, layers in signals.items() if site != "logits"}


def classes(data: TaskData, batch: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return masks of [CLS], [SEP] and punctuation in the batch; None if its tokens have no names."""
    rows = [
        data.tokens({name: value[row : row + 1] for name, value in batch.items()})
        for row in range(len(next(iter(batch.values()))))
    ]
    names = [name for row in rows if row is not None for name in row]
    if not names:
        return None
    return token_classes(batch, class_ids(names, batch["input_ids"].flatten().tolist()))
