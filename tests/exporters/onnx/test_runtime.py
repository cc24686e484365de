"""`OnnxModel` over files made by hand."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from qat_lightning.exporters.onnx.runtime import OnnxModel


def _file(folder: Path, outputs: tuple[str, ...] = ("logits",)) -> Path:
    """Each output is the sum of input_ids and attention_mask, in float32, times its number among the outputs."""
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "n"]) for name in ("input_ids", "attention_mask")
    ]
    nodes = [helper.make_node("Add", ["input_ids", "attention_mask"], ["sum"])]
    nodes += [helper.make_node("Cast", ["sum"], ["float"], to=TensorProto.FLOAT)]
    times = [helper.make_tensor(f"times_{name}", TensorProto.FLOAT, [], [i + 1.0]) for i, name in enumerate(outputs)]
    nodes += [helper.make_node("Mul", ["float", f"times_{name}"], [name]) for name in outputs]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "n"]) for name in outputs]
    graph = helper.make_graph(nodes, "sum", inputs, made, initializer=times)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


BATCH = {"input_ids": torch.tensor([[3, 5]]), "attention_mask": torch.tensor([[1, 0]])}


def test_unknown_inputs_are_left_out(tmp_path: Path) -> None:
    model = OnnxModel(_file(tmp_path))
    more = {"token_type_ids": torch.ones(1, 2, dtype=torch.long), "pixel_values": torch.ones(1, 3, 4, 4)}
    assert torch.equal(model(**BATCH, **more)["logits"], model(**BATCH)["logits"])
    assert torch.equal(model(**BATCH)["logits"], torch.tensor([[4.0, 5.0]]))


def test_several_heads_in_the_order_of_the_file(tmp_path: Path) -> None:
    output = OnnxModel(_file(tmp_path, ("start_logits", "end_logits")))(**BATCH)
    assert {name: values.tolist() for name, values in output.items()} == {
        "start_logits": [[4.0, 5.0]],
        "end_logits": [[8.0, 10.0]],
    }


def test_refuses_a_file_that_is_missing_or_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.onnx.*python -m qat_lightning\.export run=DIR"):
        OnnxModel(tmp_path / "absent.onnx")
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(Exception, match=r"model\.onnx"):
        OnnxModel(tmp_path / "model.onnx")
