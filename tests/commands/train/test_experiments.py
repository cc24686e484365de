"""Every experiment trains a few batches, or passes preflight, on a tiny model and random data."""

import json
import re

import pytest
import yaml

from qat_lightning.commands.train.pipeline import opened
from qat_lightning.commands.train.preflight import preflight
from qat_lightning.commands.train.run import prepared
from qat_lightning.config.builders.models import build_model
from qat_lightning.config.schema import CONF
from tests.training.runs import composed, planned, resolved, small_run

ELSEWHERE = {"embed_minilm"}  # test_sentence_embeddings.py: it needs a tokenizer and files
EXPERIMENTS = sorted({path.stem for path in (CONF / "experiment").glob("*.yaml")} - ELSEWHERE)


TEXT = ("model=tiny", "data=random_text")
TINY = {
    "ti_vit": ("model=tiny_vit", "data=random_images", "data.size=16"),
    "ti_bert_base_6l": (*TEXT, "model.student_layers=[1]"),
    "rerank": (*TEXT, "stages.teacher.max_epochs=1"),
    "tsld_llama": ("model=tiny_llama", "data=random_tokens"),
}
"""The model and data of an experiment in these tests, where they are not TEXT."""


WHOLE = ("kdlsq_bert_base", "ti_vit", "tsld_llama")
"""One experiment a family of models trains; preflight takes the others through every loss and intervention."""


def passes_preflight(*words: str) -> None:
    """Plan a run and take two rows through its teacher, student, losses, gradients, interventions and metrics."""
    run = planned(composed(*words))
    preflight(run, build_model(run.config, run.data))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_trains_or_passes_preflight(tmp_path, experiment):
    words = (f"+experiment={experiment}", *TINY.get(experiment, TEXT), "optimizer.lr=1e-3")
    if experiment not in WHOLE:
        passes_preflight(*words)
        return
    results = small_run(tmp_path, *words)
    assert (results["experiment"], results["status"]) == (experiment, "finished")
    assert results["student"] >= 0


@pytest.mark.parametrize(
    "method",
    [
        ("quantization=uniform_w8a8", "losses=logits"),
        ("quantization=uniform_w4a8", "quantization.activation.scale=static"),
        ("intervention_schedule=inverted", "optimizer=bert_adam"),
        ("intervention_schedule=stochastic", "lr_scheduler=constant"),
        ("intervention=output", "intervention_schedule=output"),
        ("intervention=map", "intervention_schedule=map", "losses.hidden.padding=include"),
        ("~losses.output", "losses.scores.weight=0", "intervention.map.at=[0]"),
        ("losses=attention_map", "losses.map.layers=[[1,0]]"),
        ("losses=attention_output", "losses.output.site=attention.residual"),
        ("losses=attention_output", "losses.output.site=attention.context"),
        ("losses=unified_gamma", "losses.unified.gamma=0.3"),
        ("losses=unified", "losses.map.weight=0", "intervention=output", "intervention_schedule=output"),
        ("losses.output.site=attention.projection", "stages.intervene.target_modules=[layers.*.feedforward.*]"),
        ("quantization=uniform_w8a8_asymmetric", "quantization.activation.scale=static"),
        (
            "quantization=binary_w1a8",
            "quantization.embedding.granularity=per_group",
            "quantization.embedding.group_size=8",
        ),
        (
            "quantization=lsq_w2a8",
            "quantization.weight.bits=4",
            "quantization.weight.initialization=kl",
            "callbacks=step_size_warmup",
        ),
        ("quantization=lsq_w2a8", "losses=kdlsq_task", "quantization.bits={layers.0.*:8,pooler:3}"),
        (
            "quantization=lsq_w2a8",
            "quantization.weight.bits=3",
            "quantization.weight.parametrization=step_size",
            "quantization.weight.gradient_scale=elements",
            "quantization.activation.gradient_scale=features",
            "quantization.weight.granularity=per_channel",
        ),
        ("data=random_questions", "losses=unified"),
        (
            "model=tiny_gpt2",
            "data=random_tokens",
            "intervention=context",
            "intervention_schedule=context",
            "losses=logits",
        ),
        ("model=tiny_llama", "data=random_tokens"),
    ],
    ids=" ".join,
)
def test_method_is_one_override_away(method):
    passes_preflight(*method)


@pytest.mark.parametrize(
    "method",
    [
        ("teacher=none", "losses=task", "intervention=none", "intervention_schedule=none"),
        ("quantization=none",),
        ("callbacks=early_stopping", "callbacks.early_stopping.patience=1"),
        ("quantization=binary_w1a8", "trainer.precision=bf16-mixed"),
        ("data=random_questions", "quantization=lsq_w2a8", "losses=kdlsq_squad", "callbacks=step_size_warmup"),
    ],
    ids=" ".join,
)
def test_method_trains(tmp_path, method):
    results = small_run(tmp_path, *method)
    assert results["status"] == "finished"
    if "quantization=none" in method:
        assert results["untrained"] == results["teacher"]
        assert results["bytes"]["ratio"] == 1
        exported = results["export"]["packed"]
        assert (exported["bits_per_weight"], exported["largest_difference"]) == (32, 0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, and its results."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, small_run(folder, "losses.hidden.weight=0.5")


def test_run_folder(finished):
    folder, results = finished
    assert json.loads((folder / "metrics.json").read_text()) == results
    assert {path.name for path in folder.iterdir()} == {
        "checkpoints", "config.yaml", "export", "logs", "metrics.json", "overrides.yaml", "plots", "report.md",
    }  # fmt: skip
    keys = {
        "experiment", "task", "metric", "higher_is_better", "teacher", "untrained", "student", "seed", "steps", "seconds",
        "bytes", "bits", "student_hash", "status",
    }  # fmt: skip
    assert keys <= set(results)
    assert results["steps"] == {"teacher": 4, "intervene": 6, "train": 8}, "intervene and train share train's budget"
    assert results["bytes"]["float32"] > results["bytes"]["packed"]
    assert results["bytes"]["checkpoint"] > results["bytes"]["float32"], "weights and two moments"
    assert results["bits"]["attention.query"] == 2
    assert len(results["student_hash"]) == 64
    assert yaml.safe_load((folder / "overrides.yaml").read_text()) == ["losses.hidden.weight=0.5"]
    assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == 1
    assert len(list((folder / "plots").glob("*.png"))) == 7
    assert "**student**" in (folder / "report.md").read_text()


def test_same_seed_same_bits_other_seed_other_bits(finished, tmp_path):
    short = ("losses.hidden.weight=0.5", "export.packed=false")
    second, other = (small_run(tmp_path / seed, *short, f"seed={seed}")["student_hash"] for seed in ("1", "2"))
    assert finished[1]["student_hash"] == second != other


@pytest.mark.parametrize(
    ("intervene", "train", "expected"),
    [
        (6, 14, (6, 8)),
        (6, 6, (3, 3)),
        (60, 24, (17, 7)),
        (60, 1, (0, 1)),
        (6, 0, (0, 0)),
    ],
)
def test_an_intervene_stage_that_would_use_up_the_budget_is_shortened(tmp_path, capsys, intervene, train, expected):
    words = (f"stages.intervene.max_steps={intervene}", f"stages.train.max_steps={train}")
    run = opened(composed(*words), tmp_path)
    run.plan()
    assert (run.steps("intervene"), run.steps("train")) == expected
    said = f"intervene: {expected[0]} steps, not {intervene}, which would leave none of the train stage's {train}"
    assert (said in capsys.readouterr().out.replace("\n", " ")) is (expected[0] != intervene)


def printed() -> set[str]:
    """The smoke tests that the configuration's files print: choices of groups and keys, with random data."""
    lines = (line for path in CONF.rglob("*.yaml") for line in path.read_text().splitlines() if "data=random_" in line)
    return {" ".join(re.findall(r"\b[a-z_.]+=\w+", line)) for line in lines if line.startswith("#")}


@pytest.mark.parametrize("command", sorted(printed()))
def test_a_smoke_test_runs_as_printed(tmp_path, command):
    """Up to the first step: budgets, and two rows through the whole method."""
    run, _ = prepared(resolved(*command.split(), "trainer.accelerator=cpu"), tmp_path)
    assert run.steps("intervene") > 0
    assert run.steps("train") > 0


def test_stages_with_budgets_of_their_own_are_not_shortened(tmp_path):
    run = opened(composed("stages.train.max_steps=6", "stages.train.includes_intervene=false"), tmp_path)
    assert (run.steps("intervene"), run.steps("train")) == (6, 6)
    run = opened(composed("stages.train.max_steps=6", "intervention=none", "intervention_schedule=none"), tmp_path)
    assert run.steps("train") == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "model", "data"),
    [
        ("ti_tinybert_4l", "tinybert_4l", "random_text"),
        ("ti_tinybert_6l", "tinybert_6l", "random_text"),
        ("ti_bert_base_6l", "bert_base", "random_text"),
        ("ti_vit", "deit_small", "random_images"),
    ],
)
def test_experiment_trains_at_its_true_shape(tmp_path, experiment, model, data):
    """Random weights: what the hub would give has this shape."""
    words = (f"+experiment={experiment}", f"model={model}", f"data={data}", "model.path=null", "model.pretrained=false")
    few = ("data.rows=8", "data.batch_size=4", "stages.intervene.max_steps=3", "stages.train.max_steps=5")
    results = small_run(tmp_path, *words, *few, "stages.teacher.max_steps=1", "stages.train.includes_intervene=true")
    assert results["steps"] == {"teacher": 1, "intervene": 3, "train": 2}
    assert results["bytes"]["ratio"] > 10
