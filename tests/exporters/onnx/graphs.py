"""Small modules as ONNX graphs under onnxruntime, for the tests of what the exporter is made of."""

from __future__ import annotations

from collections.abc import Sequence

import onnxruntime
import torch
from onnx import ModelProto
from torch import Tensor, nn

from qat_lightning.exporters.onnx.exporter import OPSET

FREE = torch.export.Dim.DYNAMIC


class Graph:
    """`Graph(module, *inputs)(*others)`: the module's outputs as onnxruntime computes them.

    Args:
        free: the axes of each input whose sizes may change.
    """

    proto: ModelProto

    def __init__(self, module: nn.Module, *inputs: Tensor, free: Sequence[Sequence[int]]) -> None:
        with torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                inputs,
                dynamic_shapes=tuple(dict.fromkeys(axes, FREE) for axes in free),
                opset_version=OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
        assert program is not None
        self.proto = program.model_proto
        self.session = onnxruntime.InferenceSession(self.proto.SerializeToString(), providers=["CPUExecutionProvider"])

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        names = [given.name for given in self.session.get_inputs()]
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return [torch.as_tensor(output) for output in self.session.run(None, feed)]

    def count(self, operator: str) -> int:
        return operators(self.proto).count(operator)


def operators(proto: ModelProto) -> Sequence[str]:
    """The kinds of the graph's nodes, one for each node."""
    return [node.op_type for node in proto.graph.node]
