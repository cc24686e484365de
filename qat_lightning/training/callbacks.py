"""Callbacks turn knobs by schedules; they compute nothing. All they do is a function of the step, so resume is exact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from qat_lightning.data.samplers import seed_of
from qat_lightning.distillation.intervention import Intervention
from qat_lightning.io.screen import own_stdout, printable
from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from qat_lightning.training.module import QATModule


class InterventionSchedule(Callback):
    """Sets `module.distillation.intervention` by name before each step, from the number of optimizer steps done.

    `schedule` is (step, steps) → name.
    """

    def __init__(self, interventions: Mapping[str, Intervention], schedule: Callable[[int, int], str]) -> None:
        self.interventions, self.schedule = dict(interventions), schedule

    def on_train_batch_start(self, trainer: Trainer, module: QATModule, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        module.distillation.intervention = self.interventions[self.schedule(trainer.global_step, module.steps)]

    def on_train_end(self, trainer: Trainer, module: QATModule) -> None:  # type: ignore[override]
        module.distillation.intervention = Intervention()


class StepSizeWarmup(Callback):
    """For the student's first steps, learned step sizes are computed from the tensors that they quantize; then they are learned.

    In these steps a step size is measured on each tensor, by its quantizer's own initialization, over the tensors of
    all processes: every process takes the same value, that of one process with the joined batch. (Padding is measured as
    well, so the two batches must be padded alike; `data.padding=max_length` makes them so.)
    """

    first_stage_only = True
    """The train stage keeps the step sizes that the intervene stage has learned."""

    def __init__(self, steps: int) -> None:
        if steps < 0:
            raise ValueError(f"steps={steps} must be 0 or more")
        self.steps = steps

    def on_train_batch_start(self, trainer: Trainer, module: QATModule, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self._turn(module, following=trainer.global_step < self.steps)

    def on_train_end(self, trainer: Trainer, module: QATModule) -> None:  # type: ignore[override]
        self._turn(module, following=False)

    @staticmethod
    def _turn(module: QATModule, following: bool) -> None:
        for name, quantizer in module.student.named_modules():
            if isinstance(quantizer, LSQQuantizer):
                quantizer.following = following
                if not name.endswith("weight_quantizer"):  # weights are the same in every process
                    quantizer.join = _of_all_processes


class StageBar(TQDMProgressBar):
    """One bar for a stage: its name, its steps, the loss and the student's own score; none for the validations in it."""

    def __init__(self, stage: str) -> None:
        super().__init__(refresh_rate=10, leave=False)
        self.stage = stage

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(printable(self.stage))

    def init_train_tqdm(self) -> Tqdm:
        return Tqdm(
            disable=self.is_disabled, dynamic_ncols=True, file=own_stdout(), smoothing=0, bar_format=self.BAR_FORMAT
        )

    def init_validation_tqdm(self) -> Tqdm:
        return Tqdm(disable=True)

    def get_metrics(self, trainer: Trainer, pl_module: Any) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        return {printable(name): value for name, value in shown.items() if name != "v_num"}


class StoppingReport(Callback):
    """Prints why early stopping has ended a stage, and the first value it watches that is not finite."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def on_validation_end(self, trainer: Trainer, module: QATModule) -> None:  # type: ignore[override]
        for stopping in self._stopping(trainer):
            value = trainer.callback_metrics.get(stopping.monitor)
            if value is None or value.isfinite().all() or stopping.monitor in self._said:
                continue
            self._said.add(stopping.monitor)
            effect = "ends the stage (check_finite=true)" if stopping.check_finite else "counts as not better"
            module.print(
                f"stage {module.stage}, step {trainer.global_step}: {stopping.monitor} is {float(value)}, which {effect}"
            )

    def on_train_end(self, trainer: Trainer, module: QATModule) -> None:  # type: ignore[override]
        for stopping in self._stopping(trainer):
            if stopping.stopping_reason_message:
                reason = stopping.stopping_reason_message.removesuffix("Signaling Trainer to stop.").strip()
                module.print(
                    f"stage {module.stage}: early stopping after step {trainer.global_step} of {module.steps}. {reason}"
                )

    @staticmethod
    def _stopping(trainer: Trainer) -> list[EarlyStopping]:
        return [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]  # type: ignore[attr-defined]


class SeedEachBatch(Callback):
    """Reseeds torch before each batch from (seed, batch number, rank): dropout needs no saved state to resume."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        number = trainer.fit_loop.epoch_loop.total_batch_idx
        torch.manual_seed(seed_of(self.seed, number, trainer.global_rank))


def _of_all_processes(x: Tensor) -> Tensor:
    """The values of every process's tensor, whose shapes may differ."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return x
    return torch.cat([part.flatten() for part in gather_all_tensors(x.flatten())])
