"""Whole models: the file under onnxruntime answers as the student does, and holds what it should and nothing else.

A value that lies between two codes may go to either, and then the logits move somewhere: of these students, torch in
float32 and in float64 differ so on 3 to 8 batches of 100, by up to a fifth of the logits' standard deviation, and by
1e-6 of it on the others. So of nine batches most must agree to float32's rounding, and all roughly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor
from transformers import PreTrainedModel

import qat_lightning
from qat_lightning.exporters.onnx import exporter
from qat_lightning.exporters.onnx.exporter import export_onnx
from qat_lightning.exporters.onnx.runtime import OnnxError, OnnxModel
from qat_lightning.io.files import PART
from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.packed_state import quantized_modules
from tests.exporters.onnx.cases import CASES, SLOW, Case, batch_of, model_of
from tests.exporters.onnx.graphs import operators
from tests.tiny_models import DECODERS, IMAGE_FAMILIES, tiny_batch, tiny_model


@dataclass
class Exported:
    """A student, its file, and what the student was before."""

    case: Case
    student: PreTrainedModel
    path: Path
    runnable: OnnxModel
    before: tuple[dict[str, bool], dict[str, int], dict[str, Tensor]]

    @property
    def proto(self) -> ModelProto:
        return onnx.load(self.path)


def _state(model: PreTrainedModel) -> tuple[dict[str, bool], dict[str, int], dict[str, Tensor]]:
    modules = dict(model.named_modules())
    flags = {path: module.training for path, module in modules.items()}
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return flags, {path: id(module) for path, module in modules.items()}, tensors


def _export(case: Case, folder: Path) -> Exported:
    model = model_of(case).train()
    before, path = _state(model), folder / "export" / "model.onnx"
    return Exported(case, model, path, export_onnx(model, path, batch_of(case, 3, case.lengths)), before)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Each case is exported once, when first asked for."""
    made: dict[str, Exported] = {}

    def export(name: str) -> Exported:
        if name not in made:
            torch.manual_seed(0)
            made[name] = _export(CASES[name], tmp_path_factory.mktemp("onnx"))
        return made[name]

    return export


@pytest.fixture(params=CASES)
def exported(request: pytest.FixtureRequest, exports: Callable[[str], Exported]) -> Exported:
    return exports(request.param)


@torch.no_grad()
def _check_answers(exported: Exported, runnable: OnnxModel | None = None) -> None:
    trained, differences = copy.deepcopy(exported.student).eval(), []
    for seed in range(20, 29):
        batch = batch_of(exported.case, seed)
        expected = SignalCapture(trained)(batch)["logits"]
        answered = SignalCapture(runnable or exported.runnable)(batch)["logits"]
        assert len(answered) == len(expected) == (2 if exported.case.answers else 1)
        for same, answer in zip(expected, answered, strict=True):
            assert answer.shape == same.shape
            assert answer.dtype == torch.float32
            differences.append(float((answer - same).abs().max()) / float(same.std()))
    assert np.median(differences) < 1e-5, differences
    assert max(differences) < 0.3, differences


def _check_file(exported: Exported) -> None:
    proto = exported.proto
    assert operators(proto).count("MatMulInteger") == exported.case.whole
    assert {opset.domain: opset.version for opset in proto.opset_import} == {"": 20}
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    _check_sizes(exported)


def _check_sizes(exported: Exported) -> None:
    """Codes at the width that the file has for them, and of floats no more than what was never quantized, scales and tables."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in exported.proto.graph.initializer}
    weights = list(quantized_modules(exported.student))
    for path, module, quantizer in weights:
        width = {1: 1, 2: 2, 3: 4, 4: 4}.get(quantizer.bits, 8)
        rows, columns = module.weight.shape
        packed = tensors[f"model.{path}.weight.rows.packed"]
        assert packed.dtype == np.uint8
        # a product of whole numbers has it the other way round
        assert packed.nbytes in {rows * -(-columns * width // 8), columns * -(-rows * width // 8)}
    quantized = {f"{path}.weight" for path, _, _ in weights}
    plain = sum(
        parameter.numel()
        for name, parameter in exported.student.named_parameters()
        if name not in quantized and not name.endswith("quantizer.step_size")
    )
    scales = sum(quantizer.scales(module.weight.shape) for _, module, quantizer in weights)
    # A table of values has 256 · 8/width; each input has a scale; zero points of rows; what is left is small constants.
    floats = {name: array.size for name, array in tensors.items() if array.dtype == np.float32}
    tables = sum(size for name, size in floats.items() if name.endswith("rows.table"))
    assert tables <= len(weights) * 256 * 8
    assert sum(floats.values()) - tables <= plain + 2 * scales + 60
    assert not [name for name, array in tensors.items() if array.dtype in (np.float64, np.float16)]


@pytest.mark.parametrize("optimize", [True, False])
def test_keeps_the_predictions_of_the_student(exported: Exported, optimize: bool) -> None:
    """With and without the rewriting of the graph by onnxruntime."""
    _check_answers(exported, exported.runnable if optimize else OnnxModel(exported.path, threads=1, optimize=False))


def test_integer_products_standard_operators_and_packed_codes(exported: Exported) -> None:
    _check_file(exported)


def test_the_model_handed_over_stays_as_it_is(exported: Exported) -> None:
    flags, modules, tensors = exported.before
    now = _state(exported.student)
    assert now[0] == flags
    assert now[1] == modules
    assert now[2].keys() == tensors.keys()
    assert all(torch.equal(now[2][name], tensor) for name, tensor in tensors.items())


def test_one_file_that_knows_nothing_of_where_it_was_made(exported: Exported) -> None:
    assert [path.name for path in exported.path.parent.iterdir()] == ["model.onnx"]
    content = exported.path.read_bytes()
    root = str(Path(qat_lightning.__file__).parents[1]).encode()
    for trace in (root, b".py", b"site-packages", b"stack_trace", b"torch.nn.modules", b"transformers.models"):
        assert trace not in content, trace
    proto = exported.proto
    nodes = [*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info]
    assert not any(part.metadata_props for part in (proto, proto.graph, *nodes))
    assert not any(part.doc_string for part in (proto, proto.graph, *nodes, *proto.graph.initializer))


def test_inputs_and_outputs_have_the_names_of_the_models(exported: Exported) -> None:
    case, graph = exported.case, exported.proto.graph
    inputs = ["pixel_values"] if case.family in IMAGE_FAMILIES else ["input_ids", "attention_mask"]
    assert [given.name for given in graph.input] == [*inputs, *["token_type_ids"] * case.types]
    assert [made.name for made in graph.output] == (["start_logits", "end_logits"] if case.answers else ["logits"])
    for given in graph.input:
        free = [bool(size.dim_param) for size in given.type.tensor_type.shape.dim]
        assert free == ([True, False, False, False] if case.family in IMAGE_FAMILIES else [True, True])


def test_the_same_model_gives_the_same_file(exports: Callable[[str], Exported], tmp_path: Path) -> None:
    vit = exports("vit")
    export_onnx(vit.student, tmp_path / "again.onnx", tiny_batch("vit", 4))
    assert (tmp_path / "again.onnx").read_bytes() == vit.path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_family_and_quantization(name: str, tmp_path: Path) -> None:
    exported = _export(SLOW[name], tmp_path)
    _check_answers(exported)
    _check_file(exported)


@pytest.fixture
def unfinished(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The exporter writes something that is no model; the paths to which it did."""
    paths: list[Path] = []

    def write(model: object, inputs: object, path: Path) -> None:
        paths.append(path)
        path.write_bytes(b"no model")

    monkeypatch.setattr(exporter, "_write", write)
    return paths


def test_a_file_that_the_runtime_refuses_does_not_replace_an_older_one(tmp_path: Path, unfinished: list[Path]) -> None:
    path = tmp_path / "export" / "model.onnx"
    for before in ([], ["model.onnx"]):
        for name in before:
            (path.parent / name).write_bytes(b"an older one")
        with pytest.raises(OnnxError, match="onnxruntime"):
            export_onnx(tiny_model("bert"), path, tiny_batch("bert"))
        assert PART.fullmatch(unfinished.pop().name)
        assert [left.name for left in path.parent.iterdir()] == before
    assert path.read_bytes() == b"an older one"


def test_a_file_that_loads_but_does_not_run_is_refused(
    tmp_path: Path, unfinished: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __init__(self, path: Path) -> None:
            assert path.is_file()

        def __call__(self, **inputs: Tensor) -> None:
            assert set(inputs) == {"input_ids", "attention_mask"}
            raise RuntimeError("NOT_IMPLEMENTED : no kernel for Node\nand a second line")

    monkeypatch.setattr(exporter, "OnnxModel", Broken)
    with pytest.raises(OnnxError, match=r"no kernel for Node; a newer one may") as raised:
        export_onnx(tiny_model("bert"), tmp_path / "model.onnx", tiny_batch("bert"))
    assert "second line" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", DECODERS)
def test_decoders_are_refused(family: str, tmp_path: Path) -> None:
    with pytest.raises(OnnxError, match=family):
        export_onnx(tiny_model(family), tmp_path / "model.onnx", tiny_batch(family))
    assert not list(tmp_path.iterdir())
