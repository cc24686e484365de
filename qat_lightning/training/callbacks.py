"""Callbacks turn knobs by schedules; they compute nothing. All they do is a function of the step, so resume is exact."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from qat_lightning.intervention import Intervention
from qat_lightning.training.module import QATModule


class InterventionSchedule(Callback):
    """Sets `module.intervention` by name before each step, from the number of optimizer steps done.

    Args:
        interventions: name → intervention.
        schedule: (step, steps) → name.
    """

    def __init__(self, interventions: Mapping[str, Intervention], schedule: Callable[[int, int], str]) -> None:
        self.interventions, self.schedule = dict(interventions), schedule

    def on_train_batch_start(self, trainer: Trainer, module: QATModule, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        module.intervention = self.interventions[self.schedule(trainer.global_step, module.steps)]

    def on_train_end(self, trainer: Trainer, module: QATModule) -> None:  # type: ignore[override]
        module.intervention = Intervention()


class SeedEachBatch(Callback):
    """Reseeds torch before each batch from (seed, batch number, rank): dropout needs no saved state to resume."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        number = trainer.fit_loop.epoch_loop.total_batch_idx
        digest = hashlib.sha256(f"{self.seed}/{number}/{trainer.global_rank}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
