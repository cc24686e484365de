"""compile=true: the same run but for rounding, and ordinary models afterwards."""

from __future__ import annotations

import csv
from functools import partial

import pytest
import torch

from qat_lightning.config.builders.models import build_data, build_model, build_student
from qat_lightning.config.builders.training import build_module
from qat_lightning.training.compilation import compiled
from tests.training.runs import composed, small_run

FEW = ("stages.teacher.max_steps=2", "stages.intervene.max_steps=3", "stages.train.max_steps=5", "export.packed=false")


@pytest.fixture(autouse=True)
def without_a_compiler(monkeypatch):
    """Graphs are made as for machine code, and run by torch's operators: seconds, not minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_models_and_losses_are_compiled_within_and_plain_afterwards():
    config = composed()
    data = build_data(config)
    data.load()
    teacher = build_model(config, data)
    student = build_student(config, build_model(config, data), data)
    module = build_module(config, "train", 1, student, data, teacher)
    plain = module.weighted
    with compiled(module):
        assert student._compiled_call_impl is not None
        assert teacher._compiled_call_impl is not None
        assert module.weighted != plain
    assert student._compiled_call_impl is None
    assert teacher._compiled_call_impl is None
    assert module.weighted == plain


@pytest.mark.slow
def test_a_compiled_run_is_the_eager_one_but_for_rounding(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        "qat_lightning.commands.train.pipeline.compiled", lambda module: made.append(module) or compiled(module)
    )
    eager = small_run(tmp_path / "eager", *FEW)
    own = small_run(tmp_path / "compiled", *FEW, "compile=true")
    assert len(made) == 3
    assert own["steps"] == eager["steps"]
    losses = [_losses(tmp_path / name / "logs/train/metrics.csv") for name in ("eager", "compiled")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    with pytest.raises(ValueError, match="compile: None → True"):
        small_run(tmp_path / "eager", *FEW, "compile=true")


def _losses(path):
    with path.open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
