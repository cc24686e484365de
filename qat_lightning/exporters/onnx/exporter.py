"""A student → `model.onnx`, checked by the runtime that will load it."""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qat_lightning.exporters.onnx.layers import replace_layers
from qat_lightning.exporters.onnx.runtime import INPUTS, OnnxError, OnnxModel, first_line
from qat_lightning.io.files import atomic_write
from qat_lightning.models.module_paths import family
from qat_lightning.models.sentence_pooling import head_outputs
from qat_lightning.quantization.modules.attention import IMPLEMENTATION

OPSET = 20
"""The first with Gelu as one operator."""

FOLDED = 16
"""Constants of so many elements at most are worked out at export; larger ones are packed weights, and stay packed."""


def export_onnx(model: nn.Module, path: Path, batch: Mapping[str, Tensor]) -> OnnxModel:
    """Write `model`, a transformers encoder, which stays as it is, as ONNX; return it as the runtime loads it.

    Batches may be of any size, texts of any length that the model has positions for. Weights are stored at 1, 2, 4 or 8
    bits. Where inputs have whole codes and one scale (`UniformQuantizer`, `LSQQuantizer`) and weights whole codes and a
    scale for each output at most, products are of whole numbers, with the activations' arithmetic as in training; all
    else is computed in float32 on the same values. The file appears when the runtime has loaded and run it, not before.

    Args:
        batch: one to run; what the model takes of it becomes the file's inputs.

    Raises:
        OnnxError: a decoder, or what the exporter or the runtime refuses.
    """
    if family(model).causal:
        raise OnnxError(
            f"a {model.config.model_type} model generates token by token, and this export is for encoders: write a packed folder"  # type: ignore[union-attr]
        )
    accepted = inspect.signature(model.forward).parameters.keys() & set(INPUTS)
    inputs = {name: value.detach().cpu() for name, value in batch.items() if name in accepted}
    if "input_ids" in inputs and "attention_mask" not in inputs:
        raise OnnxError("the batch has no attention_mask, and a file without one could read no padded texts: give one")
    with atomic_write(path) as unfinished:
        _write(model, inputs, unfinished)
        try:
            runnable = OnnxModel(unfinished)
            runnable(**inputs)
        except Exception as error:  # of onnxruntime, whose errors have no common ancestor but this
            raise OnnxError(
                f"the installed onnxruntime cannot run this model: {first_line(error)}; a newer one may"
                " (pip install --upgrade onnxruntime)"
            ) from error
        return runnable


class _Heads(nn.Module):
    """A model that returns the logits of each head, in their order."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        return list(head_outputs(self.model, self.model(**inputs), inputs).values())


def _write(model: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    from onnxscript import optimizer

    with torch.no_grad(), _quiet():
        prepared = copy.deepcopy(model).cpu().float().eval()
        if prepared.config._attn_implementation != IMPLEMENTATION:  # type: ignore[union-attr]
            # Plain products and a softmax, which the runtime is faster with than with what the fused attention becomes.
            prepared.set_attn_implementation("eager")  # type: ignore[operator]
        answer, free = head_outputs(prepared, prepared(**inputs), inputs), torch.export.Dim.DYNAMIC
        try:
            program = torch.onnx.export(
                _Heads(replace_layers(prepared)),
                (dict(inputs), {}),  # a last dictionary would be taken for keywords
                input_names=list(inputs),
                output_names=list(answer),
                # of variable size: the batch, and the length of texts
                dynamic_shapes=(
                    {name: {0: free} if name == "pixel_values" else {0: free, 1: free} for name in inputs},
                ),
                opset_version=OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise OnnxError(f"torch cannot export this model: {first_line(error)}") from error
        assert program is not None
        optimizer.optimize(program.model, input_size_limit=FOLDED)
        _sum_before_normalization(program.model.graph)
        _forget_sources(program.model)
        program.save(path, external_data=False)


def _sum_before_normalization(graph: Any) -> None:
    """Replace the operator Add by Sum in front of a LayerNormalization.

    onnxruntime would fuse Add and LayerNormalization to one operator that, on a CPU, takes four times as long as the two.
    """
    for node in graph:
        if node.op_type == "LayerNormalization":
            added = node.inputs[0].producer()
            if added is not None and added.op_type == "Add":
                added.op_type = "Sum"


def _forget_sources(model: Any) -> None:
    """Remove the lines of Python that the exporter notes at each node: megabytes, and paths of this machine.

    The runtime computes names of nodes and inner shapes; in a small model they outweigh the codes.
    """
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    interface = {id(value) for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values())}
    for node in model.graph:
        node.metadata_props.clear()
        node.name = None
        for value in (*node.inputs, *node.outputs):
            if value is not None:
                value.metadata_props.clear()
                if id(value) not in interface:
                    value.shape = value.type = None


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's notes on torchvision and on names of axes."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
