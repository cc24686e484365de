"""What is timed, and what is made of the seconds; nothing is asserted of the seconds themselves."""

import json

import pytest
import torch

from qat_lightning.commands.bench import training_step
from qat_lightning.commands.bench.run import run_bench
from qat_lightning.commands.bench.training_step import BASELINE, figures, measure_training
from tests.commands.bench.configurations import of_steps

NAMES = [BASELINE, "qat", "everything"]


@pytest.fixture(scope="module")
def measured():
    """The results, and what was timed; the clock gives 1, 2, 3 … seconds in the first round, 3, 6, 9 in the second."""
    timed = []

    def seconds_side_by_side(calls, rounds, warmup, untimed, say, clock, around):
        timed.append((calls, around, rounds, warmup, untimed, clock))
        return {name: [1.0 + number, 3.0 * (1 + number)] for number, name in enumerate(calls)}

    given = ("bench.only=[everything,qat]", "bench.untimed=3", "bench.clock=processor")
    with pytest.MonkeyPatch.context() as patch, of_steps(*given) as config:
        patch.setattr(training_step, "seconds_side_by_side", seconds_side_by_side)
        return measure_training(config, lambda line: None), timed


def test_all_are_timed_side_by_side(measured):
    _, ((calls, around, *numbers),) = measured
    assert list(calls) == [(kind, name) for kind in ("step", "evaluation") for name in NAMES]
    assert list(around) == [("evaluation", name) for name in NAMES]
    assert numbers == [2, 0, 3, "processor"]


def test_what_is_made_of_the_seconds(measured):
    """Steps of 1 and 3, 2 and 6, 3 and 9 seconds: medians 2, 4, 6, of three rows each."""
    rows = measured[0]["variants"]
    assert list(rows) == NAMES
    assert [row["step"]["ratio"] for row in rows.values()] == pytest.approx([1, 2, 3])
    assert [row["step"]["ratio_of_least"] for row in rows.values()] == pytest.approx([1, 2, 3])
    assert [row["step"]["samples_per_second"] for row in rows.values()] == pytest.approx([1.5, 0.75, 0.5])
    assert rows["qat"]["step"]["seconds"] == pytest.approx({"median": 4.0, "low": 2.4, "high": 5.6, "least": 2.0})
    assert [row["evaluation"]["ratio"] for row in rows.values()] == pytest.approx([1, 5 / 4, 6 / 4])


def test_bytes_grow_with_the_method(measured):
    """Adam's two moments: a step keeps 12 bytes a parameter, 16 with a teacher, and peaks 4 higher with the gradients."""
    rows, parameters = measured[0]["variants"], measured[0]["model"]["parameters"]
    for name, bytes_each in zip(NAMES, (12, 12, 16), strict=True):
        memory = rows[name]["memory"]
        assert bytes_each * parameters <= memory["kept"] < 1.3 * bytes_each * parameters
        assert memory["peak"] > memory["kept"] + 4 * parameters
        assert 0 < memory["saved"] < memory["peak"]
    peaks = [rows[name]["memory"]["peak"] for name in NAMES]
    assert peaks == sorted(peaks)


def test_what_the_figures_depend_on_is_told(measured):
    results, _ = measured
    assert results["model"]["family"] == "bert"
    told = ("baseline", "threads", "device", "shape", "precision", "compiled", "repeats", "untimed")
    assert [results[name] for name in told] == [BASELINE, 1, "cpu", "3×8", "32-true", False, 2, 3]


def test_the_ratio_of_least_is_not_that_of_medians():
    found = figures([4.0, 6.0, 11.0], [2.0, 5.0, 5.0], samples=12)
    assert found["ratio"] == pytest.approx(6 / 5)
    assert found["ratio_of_least"] == pytest.approx(2)
    assert found["samples_per_second"] == pytest.approx(2)
    assert figures([1.0], None, samples=1)["ratio"] is None


def test_the_command_prints_a_table_and_writes_all_of_it(tmp_path, capsys):
    """A variant that cannot be (this loss is for language models) says so in its row, and the others go on."""
    output, threads = tmp_path / "figures.json", torch.get_num_threads()
    wrong = "+bench.variants.wrong=['losses=token_scaled']"
    with of_steps(wrong, "bench.only=[wrong,qat]", "bench.evaluation=false", f"output={output}") as config:
        run_bench(config, ["bench=training", "model=tiny"])
    results, printed = json.loads(output.read_text()), capsys.readouterr().out
    assert "python -m qat_lightning.bench bench=training model=tiny" in printed
    assert "for language models" in results["variants"]["wrong"]["error"]
    assert "wrong: ValueError: the token-scaled loss is for language models" in printed
    assert list(results["variants"]) == [BASELINE, "qat", "wrong"]
    for name in (BASELINE, "qat"):
        row = results["variants"][name]
        assert row["step"]["seconds"]["least"] <= row["step"]["seconds"]["median"]
        assert "evaluation" not in row
        assert name in printed
    assert torch.get_num_threads() == threads


def test_compiled_rows_stand_beside_a_compiled_baseline(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    few = ("bench.only=[qat,logits]", "bench.compiled=both", "bench.memory=false", "bench.repeats=1")
    with of_steps(*few) as config:
        rows = measure_training(config, lambda line: None)["variants"]
    eager = [BASELINE, "qat", "logits"]
    assert list(rows) == [*eager, *(f"{name}, compiled" for name in eager)]
    assert compiled == ["BertForSequenceClassification"] * 7, (
        "what trains and what is evaluated, of logits the teacher too"
    )
    own, other = (rows[f"{name}, compiled"]["step"] for name in ("qat", BASELINE))
    assert own["ratio"] == pytest.approx(own["seconds"]["median"] / other["seconds"]["median"])


@pytest.mark.slow
def test_compiled_steps_train_without_running_eagerly_in_silence(monkeypatch):
    """With a backend that leaves each graph as it is: more graphs than `GRAPHS` would raise, and stand in the row."""
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: original(module, backend="eager"))
    few = ("bench.only=[qat,everything,ti_map]", "bench.compiled=true", "bench.memory=false")
    with of_steps(*few) as config:
        rows = measure_training(config, lambda line: None)["variants"]
    assert not [row["error"] for row in rows.values() if "error" in row]
    assert len(rows) == 4


def test_what_the_compiler_cannot_do_is_told_in_its_row(monkeypatch):
    def compile_(module):
        raise RuntimeError("no compiler\n  on this machine")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    with of_steps("bench.only=[qat]", "bench.compiled=both", "bench.memory=false", "bench.repeats=1") as config:
        rows = measure_training(config, lambda line: None)["variants"]
    assert rows["qat, compiled"] == {"error": "RuntimeError: no compiler on this machine"}
    assert "step" in rows["qat"]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("bench.repeats=0", r"bench\.repeats=0 must be a whole number, 1 or more"),
        ("bench.untimed=-1", r"bench\.untimed=-1"),
        ("bench.shape=[3]", r"bench\.shape holds \[3\].*\[\[3,128\]\]"),
        ("bench.shape=8", r"bench\.shape holds 8: give \[rows, tokens\]"),
        ("bench.shape=[3,65]", r"bench\.shape holds 3×65, too long"),
        ("bench.precision=bf16", r"bench\.precision='bf16': .*bf16-mixed"),
        ("bench.compiled=maybe", r"bench\.compiled='maybe': .*both"),
        ("bench.clock=sun", r"bench\.clock='sun'"),
        ("bench.device=tpu", r"bench\.device='tpu'"),
        ("bench.only=[quat]", "did you mean 'qat'"),
    ],
)
def test_a_mistake_is_told_in_words(override, told):
    with of_steps("bench.only=[]", override) as config, pytest.raises(ValueError, match=told):
        measure_training(config, lambda line: None)
