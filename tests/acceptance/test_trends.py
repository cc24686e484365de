"""What the papers saw with BERT on GLUE, looked for on MiniLM and small real data; minutes each.

One seed and a few hundred steps: trends of losses and maps, not of scores.
"""

import copy
import csv
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model

from qat_lightning.analysis.attention_maps import compare_maps
from qat_lightning.config.builders.models import build_data, build_model, build_student
from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.convert import open_attention
from tests.acceptance.test_real_data import DATA, GLUE, MODEL, needs_shared, whole_run
from tests.training.runs import resolved

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), needs_shared]
COMMON = (
    "model=minilm_l6", f"model.path={MODEL}", "stages.teacher.lr=1e-4", "trainer.enable_progress_bar=false", "threads=2",
    "export.packed=false", "export.onnx=false",
)  # fmt: skip
COLA = (
    *GLUE["cola"], "data.validation_limit=200", "data.batch_size=16", "data.max_length=32", "stages.teacher.max_epochs=1",
    "stages.train.max_epochs=1", "stages.train.keep=last", "optimizer=bert_adam", "optimizer.lr=2e-4",
    "trainer.log_every_n_steps=1",
)  # fmt: skip


def after(first: Path, folder: Path) -> Path:
    """A run folder with the teacher that the first run has trained."""
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(first / "config.yaml", folder)
    for suffix in ("safetensors", "json"):
        shutil.copy(first / "checkpoints" / f"teacher.{suffix}", folder / "checkpoints")
    return folder


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def logged(folder: Path, stage: str, column: str) -> list[float]:
    with (folder / "logs" / stage / "metrics.csv").open() as rows:
        return [float(row[column]) for row in csv.DictReader(rows) if row.get(column)]


@torch.no_grad()
def distances(folder: Path, *overrides: str) -> dict[str, tuple[float, float]]:
    """Measure → (quantized without training, trained), means over layers and heads."""
    config = resolved(*overrides)
    data = build_data(config)
    data.load()
    teacher = build_model(config, data)
    load_model(teacher, folder / "checkpoints" / "teacher.safetensors")
    student = build_student(config, copy.deepcopy(teacher), data)
    batch, site = data.example_batch(64), ["attention.probs"]
    other = SignalCapture(open_attention(teacher).eval(), site)(batch)
    untrained = compare_maps(SignalCapture(open_attention(student).eval(), site)(batch), other, batch)
    load_model(student, folder / "checkpoints" / "train.safetensors")
    trained = compare_maps(SignalCapture(student, site)(batch), other, batch)
    return {name: (mean(untrained[name]), mean(trained[name])) for name in trained}


def test_map_loss_brings_maps_closer_than_score_loss(tmp_path):
    """arXiv:2211.11014 §3: the ranking of a row's keys, which scores matched by MSE lose."""
    measured = {}
    for losses in ("ternarybert", "attention_map"):
        words = ("+experiment=kdqat_bert_base", f"losses={losses}", *COMMON, *COLA, "data.train_limit=2400")
        folder = tmp_path / losses if losses == "ternarybert" else after(tmp_path / "ternarybert", tmp_path / losses)
        whole_run(folder, *words)
        measured[losses] = distances(folder, *words)
    print(measured)
    for name in ("ranking_loss", "map_divergence"):
        untrained, by_scores = measured["ternarybert"][name]
        by_maps = measured["attention_map"][name][1]
        assert by_maps < by_scores < untrained, name


def test_intervention_lowers_the_loss(tmp_path):
    """arXiv:2302.11812 Fig. 4a and 2b: below the baseline while intervening, up at the switch, lower at the end."""
    method = ("+experiment=ti_minilm_l6", *COMMON, *COLA, "data.train_limit=2400", "stages.intervene.max_steps=48")
    whole_run(tmp_path / "intervention", *method)
    alone = ("intervention=none", "intervention_schedule=none")
    whole_run(after(tmp_path / "intervention", tmp_path / "baseline"), *method, *alone)
    column = "train/loss_hidden"
    first, then = (logged(tmp_path / "intervention", stage, column) for stage in ("intervene", "train"))
    baseline = logged(tmp_path / "baseline", "train", column)
    assert len(first) + len(then) == len(baseline) == 150
    print(mean(first), mean(baseline[:48]), mean(first[-8:]), mean(then[:4]), mean(then[-20:]), mean(baseline[-20:]))
    assert mean(first) < mean(baseline[:48])
    assert mean(then[:4]) > mean(first[-8:])
    assert mean(then[-20:]) < mean(baseline[-20:])


def test_distillation_beats_learned_steps_alone(tmp_path):
    """arXiv:2101.05938, on average over 2 and 3 bits; scores of sentence pairs, Pearson correlation."""
    sick = (
        "data=text_regression", f"data.path={DATA / 'sick'}", "data.text_columns=[sentence1,sentence2]",
        "data.label_column=relatedness_score", "data.train_limit=1600", "data.max_length=48", "optimizer.lr=1e-4",
        "stages.teacher.max_epochs=2", "stages.train.max_epochs=2",
    )  # fmt: skip
    scores: dict[str, list[float]] = {}
    for bits in (2, 3):
        for name, method in {
            "alone": ("losses=task", "teacher=none"),
            "distilled": ("losses=kdlsq_task", "~losses.logits"),
        }.items():
            folder = tmp_path / f"{name}_{bits}"
            if scores:
                after(tmp_path / "alone_2", folder)
            words = (
                "+experiment=kdlsq_bert_base",
                *COMMON,
                *sick,
                *method,
                "quantization=lsq_w2a8",
                f"quantization.weight.bits={bits}",
            )
            scores.setdefault(name, []).append(whole_run(folder, *words)["student"])
    print(scores)
    assert mean(scores["distilled"]) > mean(scores["alone"])


TREC = (
    "data=text", f"data.path={DATA / 'trec'}", "data.text_columns=[text]", "data.num_labels=6", "data.validation_split=test",
    "data.max_length=48",
)  # fmt: skip
SST2 = ("data=sst2", f"data.path={DATA / 'glue' / 'sst2'}", "data.train_limit=5000", "data.max_length=64")
LSQ = (
    "quantization=lsq_w2a8", "quantization.weight.bits=3", "losses=kdlsq", "intervention=none", "intervention_schedule=none",
    "stages=baseline", "stages.teacher.max_epochs=1", "stages.train.max_epochs=null", "stages.train.max_steps=100",
    "stages.train.keep=last", "optimizer=bert_adam", "optimizer.lr=1e-4", "data.group_by_length=true", "data.batch_size=32",
)  # fmt: skip


@pytest.mark.parametrize("data", [TREC, SST2], ids=["trec", "sst2"])
def test_chosen_bits_against_uniform_bits_of_the_same_size(tmp_path, data):
    uniform = whole_run(tmp_path / "uniform", *COMMON, *LSQ, *data)
    size = uniform["bytes"]["packed"]
    folder = after(tmp_path / "uniform", tmp_path / "chosen")
    chosen = whole_run(folder, *COMMON, *LSQ, *data, f"quantization.budget={size}B")
    assert chosen["teacher"] == uniform["teacher"]
    assert 0.98 * size <= chosen["bytes"]["packed"] <= size
    assert len({bits for bits in chosen["bits"].values() if bits < 32}) > 1
