"""What the guards read of the module that they watch."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from qat_lightning.distillation.intervention import Intervention
from qat_lightning.models.capture import Batch, Signals


class DistillationModule(Protocol):
    """The attributes of `QATModule` that the guards read; see there."""

    student: nn.Module
    stage: str
    terms: dict[str, Tensor]
    intervention: Intervention

    @property
    def teacher(self) -> nn.Module | None: ...

    @property
    def learning_rate(self) -> float: ...

    def observe_student(self, batch: Batch) -> Signals: ...

    def observe_teacher(self, batch: Batch) -> Signals: ...

    def weighted(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]: ...
