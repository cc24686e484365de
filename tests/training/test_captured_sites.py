"""In a module's steps: what no loss reads is neither asked for nor computed."""

import copy

import torch

from qat_lightning.config.builders.models import build_data, build_model, build_student
from qat_lightning.config.builders.training import build_module
from qat_lightning.distillation.losses.feature_matching import FeatureMatchingLoss
from tests.training.runs import composed


def made(*words, stage="intervene"):
    config = composed(*words)
    data = build_data(config)
    data.load()
    torch.manual_seed(0)
    teacher = build_model(config, data)
    student = build_student(config, copy.deepcopy(teacher), data)
    module = build_module(config, stage, 4, student, data, teacher)
    module.log = module.log_dict = lambda *arguments, **keywords: None
    module.optimizers = lambda: torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    return config, data, module


def test_a_loss_of_weight_zero_is_never_called_and_its_sites_are_asked_of_nobody(monkeypatch):
    words = [f"losses.{name}.weight=0" for name in ("scores", "output")]
    called, of_match = [], FeatureMatchingLoss.__call__
    monkeypatch.setattr(
        FeatureMatchingLoss, "__call__", lambda loss, *given: called.append(loss.sites) or of_match(loss, *given)
    )
    _, data, module = made(*words, "losses=teacher_intervention", stage="train")
    asked = {}
    for name in ("observe_student", "observe_teacher"):
        observe = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda batch, name=name, observe=observe: asked.setdefault(name, observe(batch))
        )
    module.training_step(data.example_batch(4), 0)
    assert {name: set(signals) for name, signals in asked.items()} == {
        "observe_student": {"hidden", "logits"}, "observe_teacher": {"hidden", "logits"},
    }  # fmt: skip
    assert called == [("hidden",)]
    assert set(module.terms) == {"logits", "hidden"}


def test_the_teacher_is_asked_for_what_is_replaced_and_the_student_is_not():
    _, _, module = made("losses=logits", "intervention=context", "intervention_schedule=context")
    assert "attention.context" not in module.observe_student.paths
    assert "attention.context" in module.observe_teacher.paths
