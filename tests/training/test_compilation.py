"""Training with torch.compile: both models and the losses are compiled, and run eagerly again afterwards."""

import copy
import csv
from functools import partial

import pytest
import torch

from qat_lightning.compat import is_compiled
from qat_lightning.config.builders.models import build_data, build_model, build_student
from qat_lightning.config.builders.training import build_module
from qat_lightning.config.schema import ConfigError
from tests.training.runs import composed, small_run

ONE_STAGE = (
    "intervention=none",
    "intervention_schedule=none",
    "stages.teacher.max_steps=1",
    "stages.train.max_steps=2",
)


@pytest.fixture(scope="module")
def step():
    torch.manual_seed(0)
    config = composed()
    data = build_data(config)
    data.load()
    teacher = build_model(config, data)
    student = build_student(config, copy.deepcopy(teacher), data)
    return build_module(config, "train", 4, student, data, teacher).distillation


def test_models_and_losses_run_eagerly_after_the_context(step):
    eager = step.weighted
    with step.compiled():
        assert is_compiled(step.student)
        assert is_compiled(step.teacher)
        assert step.weighted != eager
    assert not is_compiled(step.student)
    assert not is_compiled(step.teacher)
    assert step.weighted == eager


def test_a_run_compiles_its_stages(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr("torch.nn.Module.compile", lambda model: compiled.append(type(model).__name__))
    monkeypatch.setattr("torch.compile", lambda function: function)
    assert small_run(tmp_path, "compile=true", *ONE_STAGE)["status"] == "finished"
    assert compiled == ["BertForSequenceClassification"] * 3, "the teacher's own stage, then student and teacher"


@pytest.mark.slow
def test_a_compiled_run_is_the_eager_run_up_to_rounding(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # torch's operators: seconds
    torch._dynamo.reset()
    eager, compiled = (small_run(tmp_path / name, *ONE_STAGE, f"compile={name}") for name in ("false", "true"))
    assert compiled["steps"] == eager["steps"]
    losses = [logged(tmp_path / name / "logs/train/metrics.csv") for name in ("false", "true")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    with pytest.raises(ValueError, match="compile"):
        small_run(tmp_path / "false", *ONE_STAGE, "compile=true")


def logged(path):
    with path.open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]


def test_compiling_does_not_go_with_activation_checkpointing():
    with pytest.raises(ConfigError, match="compile"):
        composed("compile=true", "activation_checkpointing=true")
