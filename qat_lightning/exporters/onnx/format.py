"""The ONNX file as an export format."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from qat_lightning.exporters.base import ExportContext
from qat_lightning.exporters.onnx.runtime import OnnxError, OnnxModel, first_line
from qat_lightning.models.module_paths import family


class OnnxFormat:
    """`model.onnx`, which onnxruntime runs on the CPU, with its own number of threads for None."""

    name, path, cpu_only = "onnx", "model.onnx", True

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads

    def supports(self, model: nn.Module) -> str | None:
        try:
            causal = family(model).causal
        except ValueError as error:
            return str(error)
        return "a decoder generates token by token, and the ONNX export is for encoders" if causal else None

    def write(self, student: nn.Module, folder: Path, context: ExportContext) -> None:
        from qat_lightning.exporters.onnx.exporter import export_onnx  # torch's exporter takes seconds to import

        export_onnx(student, folder / self.path, context.batch)

    def load(self, folder: Path) -> nn.Module:
        try:
            return OnnxModel(folder / self.path, self.threads)
        except Exception as error:  # onnxruntime's errors have no common ancestor but this
            raise OnnxError(f"{folder / self.path} cannot be read ({first_line(error)}): export again") from error

    def describe(self, folder: Path) -> dict[str, Any]:
        model = OnnxModel(folder / self.path, self.threads)
        return {
            "path": self.path,
            "bytes": (folder / self.path).stat().st_size,
            "inputs": list(model.inputs),
            "outputs": model.outputs,
            "versions": {name: version(name) for name in ("onnx", "onnxruntime", "onnxscript")},
        }
