"""The five forms of one architecture: what lies in the folder, and that each computes what its name says."""

import os

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
from tests.commands.bench.configurations import ONE_LAYER, composed

MODELS = {"bert": ("model=tiny",), "vit": ("model=tiny_vit", "quantization=lsq_w2a8", "quantization.weight.bits=4")}


@pytest.fixture(scope="module", params=list(MODELS))
def written(request, tmp_path_factory):
    """(teacher, student, their runtimes)"""
    config = composed(*MODELS[request.param], *ONE_LAYER)
    teacher = build_teacher(config)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(2)  # else logits are near 0, and differences small for that reason alone
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


def test_the_float_runtimes_are_the_teacher(answers):
    torch.testing.assert_close(answers[TORCH], answers["teacher"], rtol=0, atol=1e-6)
    torch.testing.assert_close(answers[BASELINE], answers["teacher"], rtol=1e-4, atol=1e-4)


def test_int8_is_near_the_teacher_but_not_it(answers):
    error = (answers[INT8] - answers["teacher"]).abs().max()
    assert 1e-4 < error < 0.2 * answers["teacher"].abs().max()


def test_the_others_are_the_student(answers):
    torch.testing.assert_close(answers[PACKED], answers["student"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answers[ONNX], answers["student"], rtol=1e-3, atol=1e-3)
    assert (answers["student"] - answers["teacher"]).abs().max() > 0.01


def test_each_has_the_bytes_of_its_files(written):
    for runtime in written[2].values():
        if runtime.path.is_dir():
            counted = sum(os.path.getsize(runtime.path / name) for name in os.listdir(runtime.path))
        else:
            counted = os.path.getsize(runtime.path)
        assert runtime.bytes == counted > 10_000


def test_int8_multiplies_whole_numbers_wherever_a_weight_is_multiplied(written):
    graph = onnx.load(written[2][INT8].path).graph
    weights = {initializer.name for initializer in graph.initializer}
    multiplied = [(node.op_type, node.input[1] in weights) for node in graph.node if "MatMul" in node.op_type]
    assert ("MatMulInteger", True) in multiplied
    assert ("MatMul", True) not in multiplied
    assert not any(node.op_type == "Gemm" for node in graph.node)


def test_sessions_take_the_threads_that_are_given(written):
    for name in (BASELINE, INT8, ONNX):
        assert written[2][name].load().session.get_session_options().intra_op_num_threads == 1


def test_the_student_is_calibrated_and_its_teacher_left_alone(written):
    teacher, student, _ = written
    assert not any(isinstance(module, Quantizer) for module in teacher.modules())
    assert any(isinstance(module, Quantizer) for module in student.modules())
    assert not teacher.training
    assert not student.training


def test_weights_are_random_though_pretrained_ones_are_asked_for():
    """Nothing is looked for on the hub: the architecture of the configuration is built."""
    config = composed("model.pretrained=true", "model.path=nobody/nothing")
    first, second = build_teacher(config), build_teacher(config)
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert first.config.hidden_size == 32


def test_a_decoder_is_refused_in_words():
    with pytest.raises(ValueError, match=r"gpt2 model generates token by token.*model=bert_base"):
        build_teacher(composed("model=tiny_gpt2"))
