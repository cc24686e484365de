"""A stage of a run: train a module to its budget, once. A finished stage is never run again; an unfinished one goes on."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import textwrap
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from qat_lightning.data.base import TaskData
from qat_lightning.training.callbacks import ResumePoint
from qat_lightning.training.module import QATModule

Settings = dict[str, Any]
"""Dotted key → value: all that decides a stage's result."""

Keep = Literal["best", "last"]
"""Which weights a stage hands on: those that scored best on the validation split (the papers report these), or the last."""


@dataclass(frozen=True)
class Budget:
    """How long a stage trains.

    Args:
        max_steps, max_epochs: optimizer steps or passes over the data; the smaller one holds when both are given. 0 steps
            means that there is nothing to train.
        already: steps of earlier stages that count towards this budget (steps(1) + steps(2) = N, arXiv:2302.11812 §4).
    """

    max_steps: int | None = None
    max_epochs: int | None = None
    already: int = 0

    def steps(self, batches_per_epoch: int, accumulate: int = 1) -> int:
        """Optimizer steps. Raises ValueError for a budget that the earlier stages have used up."""
        given = [] if self.max_steps is None else [self.max_steps]
        if self.max_epochs is not None:
            given.append(math.ceil(self.max_epochs * batches_per_epoch / accumulate))
        steps = min(given) - self.already
        if steps < 0 or (steps == 0 and self.already):
            raise ValueError(
                f"the train stage's budget of {min(given)} steps is used up by the {self.already} steps of the intervene"
                " stage: give a larger stages.train.max_epochs or max_steps, or a smaller stages.intervene.max_steps"
            )
        return steps


@dataclass(frozen=True)
class Outcome:
    """What a finished stage leaves beside its weights: `checkpoints/<stage>.json`.

    `score` is the kept weights' own validation metric, `last_score` that of the last step, `assisted` the last score with
    the teacher's signals in place (None where no intervention was at work): not the student's own.
    """

    steps: int
    seconds: float
    score: float
    last_score: float
    assisted: float | None
    checkpoint_bytes: int
    settings: Settings = field(repr=False)


class Stage:
    """`checkpoints/<name>.safetensors` and `.json` when finished; `checkpoints/<name>/` with Lightning's while it runs.

    Args:
        folder: the run folder.
        settings: all that decides the result, the previous stage's fingerprint included.

    Raises:
        ValueError: the folder holds a stage of this name made with other settings; the message names them.
    """

    def __init__(self, name: str, folder: Path, settings: Settings) -> None:
        self.name, self.settings = name, json.loads(json.dumps(settings, sort_keys=True, default=str))
        self.weights = weights_of(name, folder)
        self.record, self.scratch = self.weights.with_suffix(".json"), self.weights.with_suffix("")
        self.fingerprint = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()
        self._refuse_other_settings()

    @property
    def outcome(self) -> Outcome | None:
        """None until the stage is finished."""
        return Outcome(**json.loads(self.record.read_text())) if self.record.is_file() else None

    @property
    def unfinished(self) -> Path | None:
        """The checkpoint to go on from."""
        last = self.scratch / "last.ckpt"
        return last if last.is_file() and self.outcome is None else None

    def load(self, student: nn.Module) -> None:
        """The finished stage's weights into `student`."""
        load_weights(student, self.weights)

    def callbacks(self, data: TaskData, every: int) -> list[Callback]:
        """The time spent; `best.ckpt` by the validation metric; `last.ckpt` every so many steps, to go on from."""
        best = ModelCheckpoint(
            self.scratch,
            filename="best",
            monitor=f"val/{data.metric}",
            mode="max" if data.higher_is_better else "min",
            save_weights_only=True,
            enable_version_counter=False,
        )
        return [Timer(), best, ResumePoint(self.scratch / "last.ckpt", every)]

    def fit(self, trainer: Trainer, module: QATModule, data: TaskData, keep: Keep) -> Outcome:
        """Train to the module's steps or on from the last checkpoint, keep the best or the last weights, write both files."""
        checkpoint, assisted = self.unfinished, None
        if trainer.is_global_zero:
            self._write(self.scratch / "settings.json", self.settings)
        if module.steps > 0:
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            assisted = trainer.callback_metrics.get(f"val_assisted/{data.metric}")
        last_score = own_score(trainer, module, data)
        outcome = Outcome(
            steps=trainer.global_step,
            seconds=round(_find(trainer, Timer).time_elapsed("train"), 3),
            score=self._take_best(trainer, module, data, last_score) if keep == "best" else last_score,
            last_score=last_score,
            assisted=None if assisted is None else float(assisted),
            checkpoint_bytes=_bytes(self.scratch / "last.ckpt"),
            settings=self.settings,
        )
        self._finish(trainer, module.student, outcome)
        return outcome

    def _take_best(self, trainer: Trainer, module: QATModule, data: TaskData, last_score: float) -> float:
        """The best weights into the module, if they score better than the last; returns the score of what is kept."""
        best = next((c for c in trainer.checkpoint_callbacks if getattr(c, "monitor", None) is not None), None)
        score = getattr(best, "best_model_score", None)
        if score is None or not (score > last_score if data.higher_is_better else score < last_score):
            return last_score
        state = torch.load(self.scratch / "best.ckpt", map_location="cpu", weights_only=True)["state_dict"]
        module.load_state_dict(state)
        return float(score)

    def _finish(self, trainer: Trainer, student: nn.Module, outcome: Outcome) -> None:
        trainer.strategy.barrier("stage finished")
        if trainer.is_global_zero:
            self.weights.parent.mkdir(parents=True, exist_ok=True)
            save_model(student, str(self.weights))  # a tied weight once
            self._write(self.record, asdict(outcome))  # last: a stage with a record is a finished stage
            shutil.rmtree(self.scratch, ignore_errors=True)
        trainer.strategy.barrier("stage written")

    def _refuse_other_settings(self) -> None:
        kept = self.outcome.settings if self.outcome else None
        if kept is None and (begun := self.scratch / "settings.json").is_file():
            kept = json.loads(begun.read_text())
        if kept is None or kept == self.settings:
            return
        changed = [
            f"{key}: {kept.get(key)} → {self.settings.get(key)}"
            for key in sorted({*kept, *self.settings})
            if kept.get(key) != self.settings.get(key)
        ]
        raise ValueError(
            f"the run folder holds stage {self.name!r} made with other settings ({'; '.join(changed)}): take the old"
            " settings to go on, or another hydra.run.dir to start anew"
        )

    @staticmethod
    def _write(path: Path, content: Any) -> None:
        """Whole or not at all: another process may be reading."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        temporary.write_text(json.dumps(content, indent=2))
        temporary.replace(path)


def weights_of(stage: str, folder: Path) -> Path:
    """The file with what a finished stage of a run folder handed on."""
    return folder / "checkpoints" / f"{stage}.safetensors"


def load_weights(model: nn.Module, weights: Path) -> None:
    """The weights of that file into the model.

    Raises:
        ValueError: no such file, a damaged one, or one of another model.
    """
    try:
        load_model(model, weights)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = textwrap.shorten(str(error), 240, placeholder=" …")
        raise ValueError(f"{weights} is not there, damaged, or of another model than configured: {reason}") from error


def own_scores(trainer: Trainer, module: QATModule, data: TaskData) -> dict[str, float]:
    """The student's own validation metrics, with no teacher at hand."""
    logged = trainer.validate(module, datamodule=data, verbose=False)[0]
    return {name: float(logged[f"val/{name}"]) for name in data.metrics}


def own_score(trainer: Trainer, module: QATModule, data: TaskData) -> float:
    """The one that counts."""
    return own_scores(trainer, module, data)[data.metric]


def _find(trainer: Trainer, kind: type) -> Any:
    return next(callback for callback in trainer.callbacks if isinstance(callback, kind))  # type: ignore[attr-defined]


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
