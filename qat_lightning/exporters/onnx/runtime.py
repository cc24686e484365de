"""An exported file under onnxruntime, called as a model is."""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
"""Inputs that an exported file can have."""


class OnnxError(ValueError):
    """A model that cannot be exported, or a file that onnxruntime cannot run."""


class OnnxModel(nn.Module):
    """`model(input_ids=…, attention_mask=…)` → {"logits": …}; inputs that the file does not have are left out.

    Args:
        threads: of the runtime; None leaves its own choice.
        optimize: let the runtime rewrite the graph when it loads, as it does by default.

    Raises OSError for no such file, and onnxruntime's own errors for one that it cannot load or run.
    """

    def __init__(self, path: Path, threads: int | None = None, optimize: bool = True) -> None:
        super().__init__()
        import onnxruntime  # not before it is needed: training does without

        if not path.is_file():
            raise FileNotFoundError(f"no ONNX file {path}: make one with python -m qat_lightning.export run=DIR")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = {given.name: given.type for given in self.session.get_inputs()}
        self.outputs = [given.name for given in self.session.get_outputs()]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> dict[str, Tensor]:
        given = dict(zip(INPUTS, (input_ids, attention_mask, token_type_ids, pixel_values), strict=True))
        feed = {name: numpy.asarray(given[name]) for name in self.inputs if given.get(name) is not None}
        outputs = self.session.run(self.outputs, feed)
        return {name: torch.from_numpy(output) for name, output in zip(self.outputs, outputs, strict=True)}


def first_line(error: BaseException) -> str:
    """Return the first line of the root cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
