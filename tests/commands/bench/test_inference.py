"""The figures of each runtime. Nothing is asserted of the seconds themselves."""

import json
import tempfile
from functools import partial

import onnx
import pytest
import torch
from torch import nn

from qat_lightning.commands.bench import inference
from qat_lightning.commands.bench import run as run_module
from qat_lightning.commands.bench.inference import (
    BASELINE,
    INT8,
    ONNX,
    PACKED,
    TORCH,
    Runtime,
    build_calibrated,
    build_teacher,
    logits,
    measure_inference,
    write_runtimes,
)
from qat_lightning.commands.bench.run import machine, run_bench
from qat_lightning.commands.bench.settings import random_batch
from qat_lightning.quantization.quantizers.base import Quantizer
from tests.commands.bench.configurations import composed

NAMES = [TORCH, BASELINE, INT8, PACKED, ONNX]
BYTES = {TORCH: 420, BASELINE: 400, INT8: 100, PACKED: 25, ONNX: 32}
LOGITS = {TORCH: -3.0, BASELINE: -2.75, INT8: -5.0, PACKED: 0.5, ONNX: 0.75}
SHAPES = [(1, 8), (3, 16)]


class Constant(nn.Module):
    """Two logits for each row, the first of them given."""

    def __init__(self, logit):
        super().__init__()
        self.logit = logit

    def forward(self, input_ids, attention_mask):
        return {"logits": torch.tensor([[self.logit, 0.0]]).expand(len(input_ids), 2)}


def constant_runtimes(teacher, student, folder, threads):
    for name in NAMES:
        (folder / name).write_bytes(bytes(BYTES[name]))
    references = {BASELINE: TORCH, INT8: TORCH, ONNX: PACKED}
    return {name: Runtime(folder / name, partial(Constant, LOGITS[name]), references.get(name)) for name in NAMES}


@pytest.fixture(scope="module")
def measured():
    """The results, and the arguments of both timings; the clock returns 2 to 6 seconds."""
    timed = []

    def time_interleaved(calls, rounds, warmup, untimed=1, report=None):
        timed.append((calls, rounds, warmup, untimed))
        return {name: [2.0 + number % len(NAMES)] for number, name in enumerate(calls)}

    with pytest.MonkeyPatch.context() as patch, composed("inference", "bench.warmup=4", "bench.loads=3") as config:
        patch.setattr(inference, "time_interleaved", time_interleaved)
        patch.setattr(inference, "write_runtimes", constant_runtimes)
        return measure_inference(config, lambda line: None), timed


def test_all_runtimes_are_timed_in_turns_on_the_same_inputs(measured):
    _, (loads, speeds) = measured
    assert (list(loads[0]), *loads[1:]) == (NAMES, 3, 1, 0)
    assert (list(speeds[0]), *speeds[1:]) == ([(shape, name) for shape in SHAPES for name in NAMES], 2, 4, 1)
    for shape in SHAPES:
        models, batches = zip(*(speeds[0][shape, name].args for name in NAMES), strict=True)
        assert len({id(batch) for batch in batches}) == 1
        assert batches[0]["input_ids"].shape == batches[0]["attention_mask"].shape == shape
        assert [model.logit for model in models] == list(LOGITS.values())


def test_figures(measured):
    """Speedups of 2, 3, 4, 5, 6 seconds against the second: 3/2, 1, 3/4, 3/5, 3/6; sizes against 400 bytes."""
    results, _ = measured
    runtimes = results["runtimes"]
    assert [row["speed"]["3×16"]["speedup"] for row in runtimes.values()] == pytest.approx([1.5, 1, 0.75, 0.6, 0.5])
    assert list(runtimes[ONNX]["speed"]) == ["1×8", "3×16"]
    assert runtimes[INT8]["speed"]["1×8"]["seconds"] == {"median": 4.0, "low": 4.0, "high": 4.0}
    assert runtimes[PACKED]["load"]["median"] == 5.0
    assert {name: row["bytes"] for name, row in runtimes.items()} == BYTES
    assert [row["ratio"] for row in runtimes.values()] == pytest.approx([400 / 420, 1, 4, 16, 12.5])
    assert runtimes[TORCH]["difference"] is runtimes[PACKED]["difference"] is None
    assert runtimes[INT8]["difference"] == {"from": TORCH, "largest": 2.0, "of_logits_up_to": 3.0}
    assert runtimes[ONNX]["difference"] == {"from": PACKED, "largest": 0.25, "of_logits_up_to": 0.5}
    assert results["model"]["family"] == "bert"
    assert results["model"]["bits"]["attention.query"] == 2
    conditions = ("baseline", "threads", "repeats", "warmup", "loads")
    assert [results[name] for name in conditions] == [BASELINE, 1, 2, 4, 3]


def test_the_command_prints_a_table_and_writes_all_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inference, "write_runtimes", constant_runtimes)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    output, threads = tmp_path / "figures.json", torch.get_num_threads()
    with composed("inference", f"output={output}") as config:
        run_bench(config, ["model=tiny", "threads=1"])
    results, printed = json.loads(output.read_text()), capsys.readouterr().out
    assert results["command"] == ["model=tiny", "threads=1"]
    assert "python -m qat_lightning.bench model=tiny threads=1" in printed
    assert {"torch", "onnxruntime", "qat-lightning"} <= results["versions"].keys()
    assert all(name in printed for name in NAMES)
    assert torch.get_num_threads() == threads
    assert list((tmp_path / "temporary").iterdir()) == []


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


@pytest.mark.parametrize(
    ("text", "processor", "instructions"),
    [
        ("model name\t: Some CPU @ 2 GHz: fast\nflags\t\t: fpu avx2 avx512_vnni avx512foo\n", "Some CPU @ 2 GHz: fast",
         ["avx2", "avx512_vnni"]),
        ("processor : 0\nFeatures : fp asimd asimddp\n", None, ["asimd", "asimddp"]),
        (None, None, []),
    ],
)  # fmt: skip
def test_the_machine_is_described_on_every_system(tmp_path, monkeypatch, text, processor, instructions):
    monkeypatch.setattr(run_module, "PROCESSOR", tmp_path / "cpuinfo")
    if text:
        (tmp_path / "cpuinfo").write_text(text)
    found = machine()
    assert found["instructions"] == instructions
    assert found["processor"] == (processor or found["processor"])
    assert found["cores"] >= 1
