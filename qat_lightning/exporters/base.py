"""The protocol of export formats: one folder in this room, and one node in conf/export, is one format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class ExportContext:
    """What a format may need besides the student: rows that it accepts, and the data's tokenizer or image processor."""

    batch: Mapping[str, Tensor]
    processor: Any = None


class ExportFormat(Protocol):
    """A form in which a student is exported, as a file or folder below the run's export folder.

    A format may also have `path` (the name of its file or folder; without it, `name`), `exact` (True if the exported model
    must predict exactly what the student predicts; without it, as well as the student) and `cpu_only` (True if the loaded
    model runs on the CPU only).

    Attributes:
        name: the format's key in export/metrics.json, and its name in `evaluate model=NAME`.
    """

    name: str

    def supports(self, model: nn.Module) -> str | None:
        """Return None, or the reason why the model cannot be written."""

    def write(self, student: nn.Module, folder: Path, context: ExportContext) -> None:
        """Write the student, on the CPU in float32, into the export folder; replace what an earlier export wrote.

        Raises ValueError if the student cannot be written.
        """

    def load(self, folder: Path) -> nn.Module:
        """Load what `write` wrote, as a module that is called as the student is; ValueError if it is damaged."""

    def describe(self, folder: Path) -> dict[str, Any]:
        """Return JSON for the report and the model card: at least "path", below the export folder, and "bytes"."""


def path_of(export_format: ExportFormat) -> str:
    """Return the name of a format's file or folder below the export folder."""
    return getattr(export_format, "path", export_format.name)
