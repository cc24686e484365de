"""Checkpoints to resume a stage from after a kill: `last.ckpt`, the `previous.ckpt` before it, and the best weights they name."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn

from qat_lightning.training.checkpoints.checksum import is_sealed, write_sealed
from qat_lightning.training.process.graceful_stop import GracefulStop, StoppedBySignal

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
HELD = {
    "state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step", "pytorch-lightning_version",
}  # fmt: skip
"""Keys that a checkpoint must have to resume from it."""


class CheckpointFiles(TorchCheckpointIO):
    """Checkpoints are written whole, sealed and in their own folder, and read as tensors and numbers only.

    (Lightning's own are written below the machine's temporary folder, which can be on another disk, and moved.) `last` is
    replaced again and again; the one before is kept as `previous.ckpt`.
    """

    def __init__(self, last: Path) -> None:
        self.last = last

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        write_sealed(checkpoint, Path(path), self.last.with_name(PREVIOUS) if Path(path) == self.last else None)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        return torch.load(path, map_location=map_location, weights_only=True)


class BestCheckpoint(Checkpoint):
    """`best-<step>.ckpt`: the weights that scored best by `val/<metric>`, the first of equals; without optimizer.

    The step is in the name, so that a checkpoint finds the weights that were best when it was written, however much
    training came after it before the kill. It also keeps the last score with the teacher's help, where an intervention is at
    work: a stage that goes on after its last step validates no more.
    """

    def __init__(self, folder: Path, metric: str, higher_is_better: bool) -> None:
        self.folder, self.metric, self.higher_is_better = folder, metric, higher_is_better
        self.score: float | None = None
        self.step: int | None = None
        self.assisted: float | None = None

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or trainer.global_step == 0:
            return
        logged = trainer.callback_metrics
        if (assisted := logged.get(f"val_assisted/{self.metric}")) is not None:
            self.assisted = float(assisted)
        score = float(logged[f"val/{self.metric}"])
        if trainer.strategy.reduce_boolean_decision(self.improved_by(score)):
            self.score, self.step = score, trainer.global_step
            trainer.save_checkpoint(best_path(self.folder, self.step), weights_only=True)

    def improved_by(self, score: float) -> bool:
        """Tell whether the score is better than the best so far; one that is not a finite number never is."""
        if self.score is None or not math.isfinite(score):
            return math.isfinite(score)
        return score > self.score if self.higher_is_better else score < self.score

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "step": self.step, "assisted": self.assisted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.step, self.assisted = (state_dict[name] for name in ("score", "step", "assisted"))


class ResumeCheckpoint(Checkpoint):
    """`last.ckpt`, to go on from: every so many optimizer steps or minutes, at the end, and when a signal asks to stop.

    Where a validation follows a batch, it is written after the validation: a checkpoint from before it would lose its
    score on resume. Must stand after the callbacks whose state it is to hold. Resuming gives the same bits from wherever
    it was written, so a clock may decide.

    Args:
        path: of `last.ckpt`.
        every, minutes: optimizer steps, and minutes since the one before (None for steps alone).
        best: what the checkpoint names; files that neither this one nor the one before names are removed.
        stopping: asked after each optimizer step. Of several processes one that was asked is enough: all stop after the
            same step.
    """

    def __init__(
        self,
        path: Path,
        every: int,
        minutes: float | None = None,
        best: BestCheckpoint | None = None,
        stopping: GracefulStop | None = None,
    ) -> None:
        self.path, self.every, self.best, self.stopping = path, every, best, stopping or GracefulStop()
        self.seconds = math.inf if minutes is None else 60 * minutes
        self._written = 0.0  # by the clock
        self._named: int | None = None  # the best weights that the checkpoint before names

    def setup(self, trainer: Trainer, module: Any, stage: str) -> None:
        trainer.strategy.checkpoint_io = CheckpointFiles(self.path)

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self._written, self._named = time.monotonic(), None if self.best is None else self.best.step
        self.stopping.begin()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % trainer.val_check_batch:  # type: ignore[operator]
            self._after_step(trainer)

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._after_step(trainer)

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self._save(trainer)
        self._stop_if_asked(trainer, self._asked(trainer))
        self.stopping.end()  # what other callbacks still compute can take hours, and is not waited for

    def _after_step(self, trainer: Trainer) -> None:
        batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if batches % trainer.accumulate_grad_batches:
            return
        asked = self._asked(trainer)
        if asked or trainer.global_step % self.every == 0:
            self._save(trainer)
        self._stop_if_asked(trainer, asked)

    def _asked(self, trainer: Trainer) -> int:
        """0 for nothing, 1 for a checkpoint as it is time, else the signal; the same in every process."""
        asked = self.stopping.signal or int(time.monotonic() - self._written >= self.seconds)
        if trainer.world_size == 1:
            return asked  # several processes exchange one number for each optimizer step, beside their gradients
        number = torch.tensor(asked, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(number, reduce_op="max"))

    def _stop_if_asked(self, trainer: Trainer, asked: int) -> None:
        if asked > 1:
            raise StoppedBySignal(asked, trainer.global_step, trainer.is_global_zero)

    def _save(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # what was logged before this step will not be logged again
        trainer.save_checkpoint(self.path)
        self._written = time.monotonic()
        if self.best is not None and trainer.is_global_zero:
            named = {best_path(self.path.parent, step) for step in (self.best.step, self._named) if step is not None}
            for path in set(self.path.parent.glob("best-*.ckpt")) - named:
                path.unlink()
        self._named = None if self.best is None else self.best.step


def best_path(folder: Path, step: int) -> Path:
    """The weights that scored best, after so many optimizer steps."""
    return folder / f"best-{step}.ckpt"


def resume_point(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint of a stage's folder that can be gone on from; and those newer, with what is wrong there."""
    skipped: dict[Path, str] = {}
    for path in (folder / LAST, folder / PREVIOUS):
        if path.is_file():
            wrong = _wrong(path)
            if not wrong:
                return path, skipped
            skipped[path] = wrong
    return None, skipped


def _wrong(path: Path) -> str:
    """Empty for a checkpoint that is whole, as are the best weights that it names."""
    if not is_sealed(path):
        return "is half-written or damaged"
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        best = content["callbacks"]["BestCheckpoint"]
        own = content.keys() >= HELD and best.keys() == {"score", "step", "assisted"}
    except Exception:  # a file of any origin that does not hold the state of a stage
        own = False
    if not own or type(best["step"]) not in (int, type(None)):
        return "is not a checkpoint of this program"
    if best["step"] is not None and not is_sealed(best_path(path.parent, best["step"])):
        return f"needs {best_path(path.parent, best['step']).name}, which is missing or damaged"
    return ""
