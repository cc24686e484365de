"""A stage of a run: train a module to its budget, once. A finished stage is never run again; an unfinished one goes on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities import rank_zero_warn
from pydantic import TypeAdapter
from torch import nn

from qat_lightning.analysis.result_files import LANDSCAPES, SPECTRA
from qat_lightning.data.base import TaskData
from qat_lightning.io.documents import read_json
from qat_lightning.io.external_errors import another_folder, same_command
from qat_lightning.io.files import finite, short_hash, write_json
from qat_lightning.io.screen import tell
from qat_lightning.training.checkpoints.callbacks import LAST, BestCheckpoint, ResumeCheckpoint, best_path, resume_point
from qat_lightning.training.checkpoints.checksum import read_sealed
from qat_lightning.training.checkpoints.stage_result import (
    Settings,
    StageResult,
    load_stage,
    read_outcome,
    weights_of,
    write_stage,
)
from qat_lightning.training.module import QATModule
from qat_lightning.training.process.graceful_stop import GracefulStop, StoppedBySignal

FOLLOWING = {
    "data.content": "the content of data.path, as data.tokenizer reads it",
    "previous stage": "the stage before",
    "steps": "steps (stages.*.max_steps and max_epochs, by the rows of the data)",
}
"""Settings that no key names, but several decide."""

OWN = ("last.ckpt*", "previous.ckpt*", "best-*.ckpt*", "settings.json*")
"""Files that a stage writes to its folder while it trains."""


MADE = (SPECTRA, LANDSCAPES, Path("metrics.json"), Path("report.md"), Path("export"), Path("evaluation"))
"""Files below the run folder that are made from the results of stages."""


def shared(first: int, both: int) -> int:
    """Steps of the first of two stages that together take `both` (steps(1) + steps(2) = N, arXiv:2302.11812 §4).

    Where `first` would leave the second stage none, it is shortened in proportion: first/both stays the ratio of the two.

    >>> shared(60, 234), shared(60, 60), shared(60, 24)
    (60, 30, 17)
    """
    return first if first < both else first * both // (first + both)


class StageTimer(Timer):
    """The stage's own clock; a class of its own, because Lightning stores the state of a Timer under the name of its class."""


class Stage:
    """`checkpoints/<name>.safetensors` and `.json` when finished; `checkpoints/<name>/` with its own while it runs.

    Args:
        settings: all that decides the result, the previous stage's fingerprint included.

    Raises:
        ValueError: the run folder holds a stage of this name made with other settings; the message names them.
    """

    def __init__(self, name: str, folder: Path, settings: Settings) -> None:
        self.name, self.folder = name, folder
        self.settings: Settings = finite(json.loads(json.dumps(settings, sort_keys=True, default=str)))
        self.scratch = weights_of(name, folder).with_suffix("")
        self.begun, self.stopping = self.scratch / "settings.json", GracefulStop()
        self.skipped: dict[Path, str] = {}
        self.fingerprint = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()
        self._refuse_other_settings()

    @property
    def outcome(self) -> StageResult | None:
        """None until the stage is finished."""
        return read_outcome(self.name, self.folder)

    @cached_property
    def unfinished(self) -> Path | None:
        """The checkpoint to go on from: the newest that is whole. A folder that does not say its settings is not ours."""
        if self.outcome is not None or not self.begun.is_file():
            return None
        found, self.skipped = resume_point(self.scratch)
        for path, wrong in self.skipped.items():
            instead = f"resuming from {found.name}" if found else f"stage {self.name!r} starts again"
            rank_zero_warn(f"{path} {wrong}: {instead}")
        return found

    def load(self, student: nn.Module) -> None:
        """The finished stage's weights into `student`; ValueError if they are missing or damaged."""
        self._clear()  # a kill came between the record and the removal
        load_stage(self.name, self.folder, student)

    def callbacks(self, data: TaskData, every: int, minutes: float | None = None) -> list[Callback]:
        """The time spent; the best weights by the validation metric; a checkpoint every so many steps or minutes."""
        best = BestCheckpoint(self.scratch, data.metric, data.higher_is_better)
        return [StageTimer(), best, ResumeCheckpoint(self.scratch / LAST, every, minutes, best, self.stopping)]

    def fit(self, trainer: Trainer, module: QATModule, data: TaskData, keep_best: bool) -> StageResult:
        """Train to the module's steps or on from the last checkpoint, and write the result.

        Args:
            keep_best: keep the weights that scored best on the validation split (the papers report these), or the last.

        Raises:
            StoppedBySignal: a signal has asked for the end; the next start goes on.
        """
        checkpoint, assisted = self.unfinished, None
        if trainer.is_global_zero:
            self._prepare()
        if module.steps > 0:
            self._train(trainer, module, data, checkpoint)
            assisted = _find(trainer, BestCheckpoint).assisted
        last_score = own_scores(trainer, module, data)[data.metric]
        outcome = StageResult(
            steps=trainer.global_step,
            seconds=round(_find(trainer, StageTimer).time_elapsed("train"), 3),
            score=finite(self._take_best(trainer, module, data, last_score) if keep_best else last_score),
            last_score=finite(last_score),
            assisted=finite(assisted),
            checkpoint_bytes=last.stat().st_size if (last := self.scratch / LAST).is_file() else 0,
            settings=self.settings,
        )
        self._finish(trainer, module.student, outcome)
        return outcome

    def _prepare(self) -> None:
        """Nothing half-written, and nothing of another run, stays where this stage will write or the report will read."""
        if not self.begun.is_file():
            set_aside(self.folder, self.name)
        if self.unfinished is None:
            self._clear()
        for path in self.skipped:
            path.unlink(missing_ok=True)
        write_json(self.begun, self.settings)

    def _clear(self) -> None:
        """Remove the files that the stage has written for itself, and no others."""
        for path in (path for kind in OWN for path in self.scratch.glob(kind)):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # it is not there, or holds what is not ours
            self.scratch.rmdir()

    def _train(self, trainer: Trainer, module: QATModule, data: TaskData, checkpoint: Path | None) -> None:
        try:
            with self.stopping:
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except StoppedBySignal as stopped:
            self._print(trainer, f"stopped by {stopped.name} after step {stopped.step}")
            raise
        except Exception as error:
            if not self.stopping.signal:
                raise
            # The signal went to others as well (a loader's worker, another process), and they were gone first.
            ended = StoppedBySignal(self.stopping.signal, trainer.global_step, trainer.is_global_zero)
            self._print(trainer, f"stopped by {ended.name} after step {ended.step} (not saved)")
            raise ended from error

    def _print(self, trainer: Trainer, what: str) -> None:
        if trainer.is_global_zero:
            tell(f"{what} of stage {self.name!r}: {same_command(self.folder)} continues")

    def _take_best(self, trainer: Trainer, module: QATModule, data: TaskData, last_score: float) -> float:
        """The best weights into the module, if they score better than the last; returns the score of what is kept."""
        best: BestCheckpoint = _find(trainer, BestCheckpoint)
        if best.score is None or best.step is None:
            return last_score
        as_good = last_score >= best.score if data.higher_is_better else last_score <= best.score
        if as_good and math.isfinite(last_score):
            return last_score
        module.load_state_dict(read_sealed(best_path(self.scratch, best.step))["state_dict"])
        return best.score

    def _finish(self, trainer: Trainer, student: nn.Module, outcome: StageResult) -> None:
        trainer.strategy.barrier("stage finished")
        if trainer.is_global_zero:
            write_stage(self.name, self.folder, student, outcome)
            self._clear()
        trainer.strategy.barrier("stage written")

    def _refuse_other_settings(self) -> None:
        kept = self.outcome.settings if self.outcome else None
        if kept is None and self.begun.is_file():
            try:
                kept = TypeAdapter(Settings).validate_python(read_json(self.begun))
            except ValueError as error:
                aside = f"remove it, and what {self.scratch} holds is put aside and the stage starts again"
                raise ValueError(f"{self.begun} is damaged: {aside}") from error
        if kept is not None and kept != self.settings:
            raise ValueError(
                f"the run folder holds stage {self.name!r} made with other settings ({_changes(kept, self.settings)}): take"
                f" the old settings to resume, or {another_folder()} to start again"
            )


def set_aside(folder: Path, stage: str) -> Path | None:
    """Move checkpoints and logs of a stage that has not begun, which are another run's, and what was made of them.

    Returns where to, `earlier/<number>`; None if there was nothing.
    """
    named = [path for kind in ("checkpoints", "logs") for path in (folder / kind).glob(f"{stage}*")]
    own = [path for path in named if path.name == stage or path.name.startswith(f"{stage}.")]
    left = [path for path in (*own, *(folder / made for made in MADE)) if path.exists()]
    if not left:
        return None
    numbers = [int(path.name) for path in (folder / "earlier").glob("*") if path.name.isdecimal()]
    to = folder / "earlier" / str(1 + max(numbers, default=0))  # after the last: some may be missing
    for path in left:
        place = to / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    rank_zero_warn(f"{folder} holds results of an earlier run: they are in {to} from now on")
    return to


def refuse_other_stages(folder: Path, names: Sequence[str]) -> None:
    """Raises ValueError where the run folder holds a stage, begun or finished, that this run does not have."""
    held = {path.parent.name for path in (folder / "checkpoints").glob("*/settings.json")}
    held |= {path.stem for path in (folder / "checkpoints").glob("*.json")}
    if others := sorted(held - set(names)):
        raise ValueError(
            f"the run folder holds stage {others[0]!r}, and this run has {', '.join(names)}: take the old settings to resume"
            f" (intervention, stages.*.max_steps and max_epochs), or {another_folder()} to start again"
        )


def _changes(kept: Settings, given: Settings) -> str:
    """`key: old → new` of each that differs; of those that follow from others only where no other differs."""
    changed = {key for key in {*kept, *given} if kept.get(key) != given.get(key)}
    shown = sorted(changed - FOLLOWING.keys()) or sorted(changed)
    return "; ".join(
        f"{FOLLOWING.get(key, key)}: {short_hash(kept.get(key))} → {short_hash(given.get(key))}" for key in shown
    )


def own_scores(trainer: Trainer, module: QATModule, data: TaskData) -> dict[str, float]:
    """The student's own validation metrics, with no teacher at hand."""
    logged = trainer.validate(module, datamodule=data, verbose=False)[0]
    return {name: float(logged[f"val/{name}"]) for name in data.metrics}


def _find(trainer: Trainer, kind: type) -> Any:
    return next(callback for callback in trainer.callbacks if isinstance(callback, kind))  # type: ignore[attr-defined]
