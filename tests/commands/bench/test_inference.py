"""What is measured, on which inputs, and what is made of the seconds; nothing is asserted of the seconds themselves."""

import json
import tempfile
from functools import partial

import pytest
import torch
from torch import nn

from qat_lightning.commands.bench import inference
from qat_lightning.commands.bench.inference import measure_inference
from qat_lightning.commands.bench.run import run_bench
from qat_lightning.commands.bench.runtimes import BASELINE, INT8, ONNX, PACKED, TORCH, Runtime
from qat_lightning.commands.bench.timing import Spread
from tests.commands.bench.configurations import ONE_LAYER, composed

NAMES = [TORCH, BASELINE, INT8, PACKED, ONNX]
BYTES = {TORCH: 420, BASELINE: 400, INT8: 100, PACKED: 25, ONNX: 32}
ANSWERS = {TORCH: -3.0, BASELINE: -2.75, INT8: -5.0, PACKED: 0.5, ONNX: 0.75}


class Answering(nn.Module):
    """Two logits a row, the first always the same."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, input_ids, attention_mask):
        return {"logits": torch.tensor([[self.answer, 0.0]]).expand(len(input_ids), 2)}


def runtimes_of_known_size(teacher, student, folder, threads):
    for name in NAMES:
        (folder / name).write_bytes(bytes(BYTES[name]))
    references = {BASELINE: TORCH, INT8: TORCH, ONNX: PACKED}
    return {name: Runtime(folder / name, partial(Answering, ANSWERS[name]), references.get(name)) for name in NAMES}


@pytest.fixture(scope="module")
def measured():
    """The results, and what was timed: a call for each runtime, of loading and then of each shape."""
    timed = []

    def side_by_side(calls, rounds, warmup, untimed=1, say=None):
        timed.append((calls, rounds, warmup, untimed))
        return {name: Spread(2.0 + number % len(NAMES), 1.0, 10.0) for number, name in enumerate(calls)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "side_by_side", side_by_side)
        patch.setattr(inference, "write_runtimes", runtimes_of_known_size)
        results = measure_inference(composed("bench.warmup=4", "bench.loads=3"), lambda line: None)
    return results, timed


def test_all_are_timed_side_by_side(measured):
    """Five loads; then both shapes of all five in one round."""
    _, (loads, speeds) = measured
    assert list(loads[0]) == NAMES
    assert list(speeds[0]) == [(shape, name) for shape in ((1, 8), (3, 16)) for name in NAMES]
    assert loads[1:] == (3, 1, 0), "of a load none is in front of the timed one"
    assert speeds[1:] == (2, 4, 1)


def test_all_run_on_the_same_inputs(measured):
    calls = measured[1][1][0]
    for shape in ((1, 8), (3, 16)):
        models, batches = zip(*(calls[shape, name].args for name in NAMES), strict=True)
        assert len({id(batch) for batch in batches}) == 1
        assert batches[0]["input_ids"].shape == batches[0]["attention_mask"].shape == shape
        assert [model.answer for model in models] == list(ANSWERS.values())


def test_what_is_made_of_the_seconds(measured):
    """The fake clock gives 2, 3, 4, 5, 6 seconds: against the second, 3/2, 1, 3/4, 3/5, 3/6."""
    runtimes = measured[0]["runtimes"]
    assert list(runtimes) == NAMES
    speedups = [runtime["speed"]["3×16"]["speedup"] for runtime in runtimes.values()]
    assert speedups == pytest.approx([1.5, 1, 0.75, 0.6, 0.5])
    assert list(runtimes[ONNX]["speed"]) == ["1×8", "3×16"]
    assert runtimes[INT8]["speed"]["1×8"]["seconds"] == {"median": 4.0, "low": 1.0, "high": 10.0}
    assert runtimes[PACKED]["load"] == {"median": 5.0, "low": 1.0, "high": 10.0}


def test_sizes_are_against_the_baseline(measured):
    """400 bytes of 420, 400, 100, 25, 32."""
    runtimes = measured[0]["runtimes"]
    assert {name: runtime["bytes"] for name, runtime in runtimes.items()} == BYTES
    ratios = [runtime["ratio"] for runtime in runtimes.values()]
    assert ratios == pytest.approx([400 / 420, 1, 4, 16, 12.5])


def test_answers_are_compared_with_those_that_each_should_give(measured):
    found = {name: runtime["difference"] for name, runtime in measured[0]["runtimes"].items()}
    assert found == {
        TORCH: None,
        BASELINE: {"from": TORCH, "largest": 0.25, "of_logits_up_to": 3.0},
        INT8: {"from": TORCH, "largest": 2.0, "of_logits_up_to": 3.0},
        PACKED: None,
        ONNX: {"from": PACKED, "largest": 0.25, "of_logits_up_to": 0.5},
    }


def test_what_the_figures_depend_on_is_told(measured):
    results, _ = measured
    assert results["model"]["family"] == "bert"
    assert results["model"]["bits"]["attention.query"] == 2
    assert {name: results[name] for name in ("baseline", "threads", "repeats", "warmup", "loads")} == {
        "baseline": BASELINE, "threads": 1, "repeats": 2, "warmup": 4, "loads": 3,
    }  # fmt: skip


def test_the_command_prints_a_table_and_writes_all_of_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    output, threads = tmp_path / "figures.json", torch.get_num_threads()
    run_bench(composed("bench.shapes=[[1,8]]", f"output={output}", *ONE_LAYER), ["model=tiny", "threads=1"])
    results, printed = json.loads(output.read_text()), capsys.readouterr().out
    assert json.loads(json.dumps(results)) == results
    assert results["command"] == ["model=tiny", "threads=1"]
    assert {"bench", "machine", "versions", "model", "runtimes"} <= results.keys()
    assert "python -m qat_lightning.bench model=tiny threads=1" in printed
    assert results["runtimes"][BASELINE]["difference"]["largest"] < 1e-5, "the same model in both"
    assert results["runtimes"][ONNX]["difference"]["largest"] < 0.01
    for name in NAMES:
        seconds = results["runtimes"][name]["speed"]["1×8"]["seconds"]
        assert 0 < seconds["low"] <= seconds["median"] <= seconds["high"]
        assert name in printed
    assert torch.get_num_threads() == threads
    assert list((tmp_path / "temporary").iterdir()) == [], "hundreds of megabytes for a model of true size"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("bench.repeats=0", r"bench\.repeats=0 must be a whole number, 1 or more"),
        ("bench.repeats=many", r"bench\.repeats='many'"),
        ("bench.loads=0", r"bench\.loads=0"),
        ("bench.warmup=-1", r"bench\.warmup=-1 must be a whole number, 0 or more"),
        ("bench.shapes=[[1]]", r"bench\.shapes holds \[1\], .*\[\[1,128\]\]"),
        ("bench.shapes=[[1,65]]", r"1×65, too long .*max_position_embeddings=64"),
        ("bench.shapes=long", r"bench\.shapes='long' must be a list"),
        ("bench.name=inferense", "did you mean 'inference'"),
        ("threads=0", "threads=0 must be 1 or more"),
        ("threads=null", "threads=None"),
        ("output=/no/such/folder/x.json", "output=/no/such/folder/x.json must be a file in a folder that exists"),
        ("model=tiny_llama", "llama model generates token by token"),
    ],
)
def test_a_mistake_is_told_in_words(override, told):
    with pytest.raises(ValueError, match=told):
        run_bench(composed(override), [])
