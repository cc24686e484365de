"""The module of one stage: who is trained, who is watched, what is logged, what is saved."""

import copy

import pytest
import torch
from lightning.pytorch import Trainer

from qat_lightning.config.builders.models import build_data, build_model, build_student
from qat_lightning.config.builders.training import build_callbacks, build_module, build_trainer
from qat_lightning.distillation.intervention import Intervention
from qat_lightning.training.guards.callbacks import FrozenTeacherCheck, NonFiniteCheck
from tests.training.runs import composed


@pytest.fixture
def parts():
    torch.manual_seed(0)
    config = composed()
    data = build_data(config)
    data.load()
    teacher = build_model(config, data)
    return config, data, teacher, build_student(config, copy.deepcopy(teacher), data)


def fitted(config, data, stage, steps, student, teacher, folder) -> tuple[Trainer, object]:
    module = build_module(config, stage, steps, student, data, teacher)
    trainer = build_trainer(config, stage, steps, folder, build_callbacks(config, stage, data), validate_every=2)
    trainer.fit(module, datamodule=data)
    return trainer, module


def test_biases_and_normalization_get_no_weight_decay(parts):
    config, data, teacher, student = parts
    groups = build_module(config, "train", 4, student, data, teacher).configure_optimizers()["optimizer"].param_groups
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    undecayed = [names[id(parameter)] for parameter in groups[1]["params"]]
    assert all(name.endswith("bias") or "LayerNorm" in name for name in undecayed)
    assert len(undecayed) + len(groups[0]["params"]) == len(names)


def test_weight_zero_is_neither_computed_nor_captured(parts):
    config, data, teacher, student = parts
    for name in ("scores", "output"):
        config.losses[name]["weight"] = 0.0
    module = build_module(config, "train", 4, student, data, teacher)
    assert set(module.distillation.losses) == {"logits", "hidden"}
    assert set(module.distillation.capture_student.paths) == {"hidden"}
    assert set(module.distillation.capture_teacher.paths) == {"hidden"}


def test_only_the_teacher_is_captured_at_the_sites_of_an_intervention(parts):
    config, data, teacher, student = parts
    step = build_module(config, "intervene", 4, student, data, teacher).distillation
    assert "attention.context" not in step.capture_student.paths
    assert "attention.context" in step.capture_teacher.paths


# TI-O never trains W_V and W_O (arXiv:2302.11812, released code): neither a gradient, nor weight decay, nor momentum moves them
@pytest.mark.parametrize(
    ("optimizer", "compiled"),
    [("adamw", False), ("bert_adam", False), pytest.param("adamw", True, marks=pytest.mark.slow)],
)
def test_what_an_intervention_does_not_train_is_bit_identical_after_it(tmp_path, optimizer, compiled):
    config = composed(
        "intervention=output",
        "intervention_schedule=output",
        f"optimizer={optimizer}",
        "optimizer.weight_decay=0.5",
        "model.architecture.num_hidden_layers=1",
    )
    data = build_data(config)
    data.load()
    teacher = build_model(config, data)
    student = build_student(config, copy.deepcopy(teacher), data)
    before = copy.deepcopy(student.state_dict())
    if compiled:
        student.compile(backend="aot_eager")
    fitted(config, data, "intervene", 3, student, teacher, tmp_path)
    after = student.state_dict()
    untrained = [name for name in before if "self.value." in name or "attention.output.dense." in name]
    assert len(untrained) == 2 * 2
    assert all(torch.equal(before[name], after[name]) for name in untrained)
    trained = ["attention.self.query.weight", "intermediate.dense.weight", "attention.output.LayerNorm.weight"]
    assert all(not torch.equal(before[name], after[name]) for name in before if name.endswith(tuple(trained)))


def test_assisted_and_own_score_are_both_logged_only_while_intervening(parts, tmp_path):
    config, data, teacher, student = parts
    trainer, module = fitted(config, data, "intervene", 4, copy.deepcopy(student), teacher, tmp_path)
    assert {"val/accuracy", "val_assisted/accuracy"} <= set(trainer.callback_metrics)
    assert module.distillation.intervention.sites == ()
    trainer, _ = fitted(config, data, "train", 4, student, teacher, tmp_path)
    assert "val/accuracy" in trainer.callback_metrics
    assert "val_assisted/accuracy" not in trainer.callback_metrics


def test_assisted_score_of_a_full_precision_student_at_any_weights_is_its_teachers_under_output(parts):
    """Replacing every attention output leaves only the feed-forward path to differ: equal weights, equal logits."""
    config, data, teacher, _ = parts
    student, batch = copy.deepcopy(teacher).eval(), data.example_batch(4)
    module = build_module(config, "intervene", 4, student, data, teacher)
    module.distillation.intervention = Intervention(["attention.projection"])
    signals = module.distillation.teacher_signals(batch)
    with torch.no_grad(), module.distillation.intervention.apply(student, signals):
        assert torch.equal(module.answer(batch)["logits"][0], signals["logits"][0])


def test_evaluation_after_the_intervention_never_runs_the_teacher(parts, monkeypatch):
    config, data, teacher, student = parts
    module = build_module(config, "train", 4, student, data, teacher)
    monkeypatch.setattr(module.distillation, "capture_teacher", lambda batch: pytest.fail("the teacher was run"))
    monkeypatch.setattr(module, "log", lambda *arguments, **keywords: None)
    module.validation_step(data.example_batch(4), 0)
    assert module.metrics["val"]["accuracy"].compute() >= 0


def test_intervention_follows_the_schedule_by_steps_not_batches(parts, tmp_path):
    config, data, teacher, student = parts
    config.trainer.accumulate_grad_batches = 2
    module, seen = build_module(config, "intervene", 6, student, data, teacher), []
    step = module.training_step

    def training_step(batch, batch_idx):
        seen.append(module.distillation.intervention.sites[0])
        return step(batch, batch_idx)

    module.training_step = training_step
    trainer = build_trainer(
        config, "intervene", 6, tmp_path, build_callbacks(config, "intervene", data), validate_every=100
    )
    trainer.fit(module, datamodule=data)
    output, context, probs = "attention.projection", "attention.context", "attention.probs"
    assert seen == [output] * 2 + [context] * 2 + [probs] * 8


def test_the_guards_come_with_the_module_once(parts, tmp_path):
    config, data, teacher, student = parts
    module, own = build_module(config, "train", 2, student, data, teacher), NonFiniteCheck()
    trainer = build_trainer(config, "train", 2, tmp_path, [own], validate_every=2)
    trainer.fit(module, datamodule=data)
    trainer.validate(module, datamodule=data, verbose=False)
    guards = [callback for callback in trainer.callbacks if isinstance(callback, NonFiniteCheck | FrozenTeacherCheck)]
    assert sorted(type(guard).__name__ for guard in guards) == ["FrozenTeacherCheck", "NonFiniteCheck"]
    assert own in guards
