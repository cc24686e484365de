"""The five forms of one architecture: their files, and that each computes the model of its name."""

import onnx
import pytest
import torch

from qat_lightning.commands.bench.runtimes import (
    BASELINE,
    INT8,
    ONNX,
    PACKED,
    TORCH,
    build_calibrated,
    build_teacher,
    logits,
    write_runtimes,
)
from qat_lightning.commands.bench.shapes import random_batch
from qat_lightning.quantization.quantizers.base import Quantizer
from tests.commands.bench.configurations import composed

MODELS = {"bert": ("model=tiny",), "vit": ("model=tiny_vit", "quantization=lsq_w2a8", "quantization.weight.bits=4")}


@pytest.fixture(scope="module", params=["bert", pytest.param("vit", marks=pytest.mark.slow)])
def written(request, tmp_path_factory):
    """(teacher, student, their runtimes)"""
    with composed("inference", *MODELS[request.param]) as config:
        teacher = build_teacher(config)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(2)  # logits near 0 would have small differences
    student = build_calibrated(config, teacher)
    return teacher, student, write_runtimes(teacher, student, tmp_path_factory.mktemp("forms"), threads=1)


@pytest.fixture(scope="module")
def answers(written):
    """Name → logits of every runtime on the same batch, of another shape than that of the export."""
    teacher, _, runtimes = written
    batch = random_batch(teacher, (3, 11)[: 1 if teacher.main_input_name == "pixel_values" else 2], seed=4)
    return {name: logits(runtime.load(), batch) for name, runtime in runtimes.items()} | {
        "teacher": logits(teacher, batch),
        "student": logits(written[1], batch),
    }


def test_each_form_computes_its_model(answers):
    teacher, student = answers["teacher"], answers["student"]
    torch.testing.assert_close(answers[TORCH], teacher, rtol=0, atol=1e-6)
    torch.testing.assert_close(answers[BASELINE], teacher, rtol=1e-4, atol=1e-4)
    assert 1e-4 < (answers[INT8] - teacher).abs().max() < 0.2 * teacher.abs().max()
    torch.testing.assert_close(answers[PACKED], student, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answers[ONNX], student, rtol=1e-3, atol=1e-3)
    assert (student - teacher).abs().max() > 0.01


def test_files_and_threads(written):
    teacher, student, runtimes = written
    for runtime in runtimes.values():
        files = list(runtime.path.iterdir()) if runtime.path.is_dir() else [runtime.path]
        assert runtime.bytes == sum(file.stat().st_size for file in files) > 10_000
    for name in (BASELINE, INT8, ONNX):
        assert runtimes[name].load().session.get_session_options().intra_op_num_threads == 1
    assert not any(isinstance(module, Quantizer) for module in teacher.modules())
    assert any(isinstance(module, Quantizer) for module in student.modules())
    assert not teacher.training
    assert not student.training


def test_int8_multiplies_integers_for_every_weight(written):
    graph = onnx.load(written[2][INT8].path).graph
    weights = {initializer.name for initializer in graph.initializer}
    multiplied = [(node.op_type, node.input[1] in weights) for node in graph.node if "MatMul" in node.op_type]
    assert ("MatMulInteger", True) in multiplied
    assert ("MatMul", True) not in multiplied
    assert not any(node.op_type == "Gemm" for node in graph.node)


def test_weights_are_random_and_no_hub_is_asked():
    with composed("inference", "model.pretrained=true", "model.path=nobody/nothing") as config:
        first, second = build_teacher(config), build_teacher(config)
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert first.config.hidden_size == 32
