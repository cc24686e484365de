"""The figures of training steps. Nothing is asserted of the seconds themselves."""

import json

import pytest
import torch

from qat_lightning.commands.bench import training
from qat_lightning.commands.bench.run import run_bench
from qat_lightning.commands.bench.training import (
    BASELINE,
    NO_METHOD,
    compose_run,
    compose_variants,
    figures,
    measure_training,
)
from qat_lightning.config.instantiate import create_all
from qat_lightning.config.schema import Teacher
from qat_lightning.distillation.losses.feature_matching import FeatureMatchingLoss
from qat_lightning.distillation.losses.logits import LogitDistillationLoss, TaskLoss
from tests.commands.bench.configurations import composed

NAMES = [BASELINE, "qat", "everything"]


@pytest.fixture(scope="module")
def measured():
    """The results, and the arguments of the timing; the clock returns 1, 2, 3 … seconds, then 3, 6, 9 …"""
    timed = []

    def time_interleaved(calls, rounds, warmup, untimed, report, clock, contexts):
        timed.append((calls, contexts, rounds, warmup, untimed, clock))
        return {name: [1.0 + number, 3.0 * (1 + number)] for number, name in enumerate(calls)}

    overrides = ("bench.only=[everything,qat]", "bench.untimed=3", "bench.clock=processor")
    with pytest.MonkeyPatch.context() as patch, composed("training", *overrides) as config:
        patch.setattr(training, "time_interleaved", time_interleaved)
        return measure_training(config, lambda line: None), timed


def test_all_variants_are_timed_in_turns(measured):
    _, ((calls, contexts, *counts),) = measured
    assert list(calls) == [(kind, name) for kind in ("step", "evaluation") for name in NAMES]
    assert list(contexts) == [("evaluation", name) for name in NAMES]
    assert counts == [2, 0, 3, "processor"]


def test_figures(measured):
    """Steps of 1 and 3, 2 and 6, 3 and 9 seconds: medians 2, 4, 6, for three rows each."""
    results, _ = measured
    rows = results["variants"]
    assert [row["step"]["ratio"] for row in rows.values()] == pytest.approx([1, 2, 3])
    assert [row["step"]["samples_per_second"] for row in rows.values()] == pytest.approx([1.5, 0.75, 0.5])
    assert rows["qat"]["step"]["seconds"] == pytest.approx({"median": 4.0, "low": 2.4, "high": 5.6, "least": 2.0})
    assert [row["evaluation"]["ratio"] for row in rows.values()] == pytest.approx([1, 5 / 4, 6 / 4])
    assert figures([4.0, 6.0, 11.0], [2.0, 5.0, 5.0], samples=12)["ratio_of_least"] == pytest.approx(2)
    assert figures([1.0], None, samples=1)["ratio"] is None
    conditions = ("baseline", "threads", "device", "shape", "precision", "compiled", "repeats", "untimed")
    assert [results[name] for name in conditions] == [BASELINE, 1, "cpu", "3×8", "32-true", False, 2, 3]


def test_bytes_grow_with_the_method(measured):
    """A step keeps weights and two moments of Adam, 12 bytes a parameter; 16 with a teacher."""
    plain, qat, everything = (row["memory"] for row in measured[0]["variants"].values())
    weights = 4 * measured[0]["model"]["parameters"]
    assert 3 * weights <= plain["kept"] < 3.2 * weights
    assert 4 * weights <= everything["kept"] < 4.2 * weights
    assert plain["kept"] + weights <= plain["peak"] < everything["peak"]
    assert plain["saved"] < qat["saved"]


def test_the_command_prints_a_table_and_writes_all_figures(tmp_path, capsys):
    """A variant that cannot be built (its loss is for language models) has an error row, and the others continue."""
    output, threads = tmp_path / "figures.json", torch.get_num_threads()
    wrong = ("+bench.variants.wrong=['losses=token_scaled']", "bench.only=[wrong,qat]", "bench.evaluation=false")
    with composed("training", *wrong, f"output={output}") as config:
        run_bench(config, ["bench=training", "model=tiny"])
    results, printed = json.loads(output.read_text()), capsys.readouterr().out
    assert "python -m qat_lightning.bench bench=training model=tiny" in printed
    assert "wrong: ValueError" in printed
    assert list(results["variants"]) == [BASELINE, "qat", "wrong"]
    for name in (BASELINE, "qat"):
        row = results["variants"][name]
        assert row["step"]["seconds"]["least"] <= row["step"]["seconds"]["median"]
        assert "evaluation" not in row
    assert torch.get_num_threads() == threads


def test_compiled_rows_are_compared_with_a_compiled_baseline(monkeypatch):
    """A variant that the compiler refuses has an error row."""

    def compile_(module):
        if getattr(module, "refused", False):
            raise RuntimeError("no compiler\n  on this machine")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    fast = (
        "bench.only=[qat]",
        "bench.compiled=both",
        "bench.memory=false",
        "bench.repeats=1",
        "bench.evaluation=false",
    )
    with composed("training", *fast) as config:
        rows = measure_training(config, lambda line: None)["variants"]
        torch.nn.Module.refused = True
        try:
            refused = measure_training(config, lambda line: None)["variants"]
        finally:
            del torch.nn.Module.refused
    assert list(rows) == [BASELINE, "qat", f"{BASELINE}, compiled", "qat, compiled"]
    own, other = (rows[f"{name}, compiled"]["step"] for name in ("qat", BASELINE))
    assert own["ratio"] == pytest.approx(own["seconds"]["median"] / other["seconds"]["median"])
    assert refused["qat, compiled"] == {"error": "RuntimeError: no compiler on this machine"}
    assert "step" in refused["qat"]


@pytest.mark.slow
def test_compiled_steps_stay_below_the_limit_of_graphs(monkeypatch):
    """A backend that runs each graph unchanged; more graphs than `GRAPHS` would raise, and give an error row."""
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: original(module, backend="eager"))
    with composed(
        "training", "bench.only=[qat,everything,ti_map]", "bench.compiled=true", "bench.memory=false"
    ) as config:
        rows = measure_training(config, lambda line: None)["variants"]
    assert len(rows) == 4
    assert not [row["error"] for row in rows.values() if "error" in row]


@pytest.fixture(scope="module")
def variants():
    with composed("training", "quantization=uniform_w8a8") as config:
        return list(config.bench["variants"]), compose_variants(config)


def test_variants_compose_in_their_order_and_those_of_one_loss_have_no_other(variants):
    names, made = variants
    assert list(made) == names

    def kinds(config):
        return {name: type(loss) for name, loss in create_all(config.losses, "losses").items()}

    assert kinds(made["qat"]) == {"task": TaskLoss}
    assert kinds(made["logits"]) == {"logits": LogitDistillationLoss}
    for name, site in (("hidden", "hidden"), ("scores", "attention.scores"), ("output", "attention.output")):
        assert kinds(made[name]) == {name: FeatureMatchingLoss}
        assert made[name].losses[name]["site"] == site
    assert list(made["map"].losses) == ["map"]
    assert set(made["unified"].losses) == {"logits", "hidden", "map", "output"}
    assert set(made["everything"].losses) == {"logits", "hidden", "scores", "output"}


def test_only_variants_of_teacher_intervention_have_interventions(variants):
    _, made = variants
    for name, config in made.items():
        chosen = name.partition("ti_")[2]
        assert list(config.intervention) == ([chosen] if chosen else [])
        assert bool(config.intervention_schedule) == bool(chosen)


def test_variants_have_the_quantization_of_the_command_unless_they_choose_one(variants):
    _, made = variants
    target = {name: config.quantization.weight for name, config in made.items()}
    assert target["everything"]["_target_"].endswith("UniformQuantizer")
    assert target["everything"]["bits"] == 8
    assert target["lsq"]["_target_"].endswith("LSQQuantizer")
    assert target["fine_tuning"] is target["distillation"] is None
    assert {name for name, config in made.items() if config.teacher is Teacher.none} == {"fine_tuning", "qat", "lsq"}


def test_variants_have_the_model_of_the_command_with_random_weights():
    with composed("training", "model.path=nobody/nothing", "model.pretrained=true", "bench.only=[qat]") as config:
        for made in (compose_run(config, NO_METHOD), *compose_variants(config).values()):
            assert made.model.pretrained is False
            assert made.model.architecture == config.model.architecture


def test_a_users_own_variant():
    words = ["losses=logits", "quantization=ternary_w2a8", "quantization.weight.granularity=per_channel"]
    common = "bench.common=['optimizer=bert_adam','seed=7']"
    with composed("training", f"+bench.variants.mine={words}", "bench.only=[mine]", common) as config:
        (made,) = compose_variants(config).values()
    assert made.quantization.rules["layers"]["weight"]["granularity"] == "per_channel"
    assert made.optimizer["_target_"].endswith("BertAdam")
    assert made.seed == 7
