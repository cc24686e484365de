"""An export format: the plain tensors of the student."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn


class TensorFileFormat:
    """`student.pt`; the student itself is kept as the module that reads it."""

    name, path = "tensors", "student.pt"
    student: nn.Module

    def supports(self, model: nn.Module) -> str | None:
        return None

    def write(self, student: nn.Module, folder: Path, context: Any) -> None:
        type(self).student = copy.deepcopy(student)
        torch.save(student.state_dict(), folder / self.path)

    def load(self, folder: Path) -> nn.Module:
        model = copy.deepcopy(self.student)
        model.load_state_dict(torch.load(folder / self.path, weights_only=True))
        return model

    def describe(self, folder: Path) -> dict[str, Any]:
        return {"path": self.path, "bytes": (folder / self.path).stat().st_size}
