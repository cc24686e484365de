"""`OnnxModel` over files made by hand."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from qat_lightning.exporters.onnx.runtime import OnnxModel


def _file(folder: Path) -> Path:
    """Write a file whose output is the sum of input_ids and attention_mask, in float32."""
    names = ("input_ids", "attention_mask")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "n"]) for name in names]
    nodes = [
        helper.make_node("Add", names, ["sum"]),
        helper.make_node("Cast", ["sum"], ["logits"], to=TensorProto.FLOAT),
    ]
    made = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "n"])]
    model = helper.make_model(
        helper.make_graph(nodes, "sum", inputs, made), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


BATCH = {"input_ids": torch.tensor([[3, 5]]), "attention_mask": torch.tensor([[1, 0]])}


def test_unknown_inputs_are_left_out(tmp_path: Path) -> None:
    model = OnnxModel(_file(tmp_path))
    more = {"token_type_ids": torch.ones(1, 2, dtype=torch.long), "pixel_values": torch.ones(1, 3, 4, 4)}
    assert torch.equal(model(**BATCH, **more)["logits"], model(**BATCH)["logits"])
    assert torch.equal(model(**BATCH)["logits"], torch.tensor([[4.0, 5.0]]))


def test_refuses_a_file_that_is_missing_or_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.onnx.*python -m qat_lightning\.export run=DIR"):
        OnnxModel(tmp_path / "absent.onnx")
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(Exception, match=r"model\.onnx"):
        OnnxModel(tmp_path / "model.onnx")
