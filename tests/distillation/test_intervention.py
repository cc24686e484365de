"""The teacher's signal in place of the student's. The papers' modes are in golden/test_teacher_intervention.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from qat_lightning.distillation.intervention import Intervention
from qat_lightning.models.capture import SignalCapture, Signals
from qat_lightning.models.convert import open_attention
from qat_lightning.models.module_paths import site_paths
from qat_lightning.models.sites import AXES
from tests.tiny_models import FAMILIES, LAYERS, tiny_batch, tiny_model

CORE = ["attention.projection", "attention.context", "attention.probs"]
QKV = ["attention.query", "attention.key", "attention.value"]


def observe(model: nn.Module, family: str = "bert") -> Signals:
    return SignalCapture(model, AXES)(tiny_batch(family))


def teacher_signals(family: str = "bert", **changes: object) -> Signals:
    with torch.no_grad():
        return observe(open_attention(tiny_model(family, seed=1, **changes)), family)


def student_model(family: str = "bert") -> nn.Module:
    return open_attention(tiny_model(family, seed=2))


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", CORE)
def test_the_model_goes_on_with_the_teachers_signal(family: str, site: str) -> None:
    """What follows the replaced site is computed from the teacher's tensor, in every layer."""
    teacher, student = teacher_signals(family), student_model(family)
    with Intervention([site]).apply(student, teacher):
        received = observe(student, family)
    for layer in range(LAYERS):
        value = received["attention.value"][layer].unflatten(-1, (4, -1)).transpose(1, 2)
        probs = (teacher if site == "attention.probs" else received)["attention.probs"][layer]
        assert torch.equal(received["attention.context"][layer], probs @ value)
        context = (teacher if site == "attention.context" else received)["attention.context"][layer]
        project = student.get_submodule(site_paths(student, "attention.projection")[layer])
        assert torch.equal(received["attention.projection"][layer], project(context.transpose(1, 2).flatten(2)))
        projection = (teacher if site == "attention.projection" else received)["attention.projection"][layer]
        module = student.get_submodule(site_paths(student, "attention.output")[layer])
        norm = getattr(module, "LayerNorm", module)
        assert torch.equal(received["attention.output"][layer], norm(projection + received["hidden"][layer]))


def test_only_the_layers_asked_for() -> None:
    teacher, student = teacher_signals(), student_model()
    plain = observe(student)
    with Intervention(["attention.projection"], at=[1]).apply(student, teacher):
        received = observe(student)
    assert torch.equal(received["attention.output"][0], plain["attention.output"][0])
    assert not torch.equal(received["attention.output"][1], plain["attention.output"][1])


def test_nothing_to_replace_changes_nothing() -> None:
    student = student_model()
    plain = observe(student)["logits"][0]
    with Intervention().apply(student, {}):
        assert hooks_of(student) == 0
        assert torch.equal(observe(student)["logits"][0], plain)
    assert Intervention().sites == ()


def test_the_gradient_stops_before_the_detached_module_and_not_at_it() -> None:
    student = student_model()
    hidden = "bert.embeddings.word_embeddings.weight"
    for detach, reaches in ((QKV, False), (QKV[:2], True), ([], True)):
        student.zero_grad()
        with Intervention(detach=detach).apply(student, {}):
            signals = observe(student)
        (
            signals["attention.context"][0].sum() + signals["attention.scores"][0].clamp(min=-99).square().sum()
        ).backward()
        assert student.get_parameter("bert.encoder.layer.0.attention.self.query.weight").grad.any()
        assert student.get_parameter("bert.encoder.layer.0.attention.self.value.weight").grad.any()
        gradient = student.get_parameter(hidden).grad
        assert (gradient is not None and bool(gradient.any())) is reaches, detach


def test_the_teachers_signal_carries_no_gradient_of_the_students_sites() -> None:
    teacher, student = teacher_signals(), student_model()
    with Intervention(["attention.projection"]).apply(student, teacher):
        observe(student)["attention.output"][0].sum().backward()
    assert student.get_parameter("bert.encoder.layer.0.attention.output.dense.weight").grad is None
    assert student.get_parameter("bert.embeddings.LayerNorm.bias").grad.any()


def test_the_teacher_learns_nothing_even_if_it_was_run_with_gradients() -> None:
    teacher_model, student = open_attention(tiny_model("bert", seed=1)), student_model()
    with Intervention(["attention.projection"]).apply(student, observe(teacher_model)):
        observe(student)["logits"][0].sum().backward()
    assert all(parameter.grad is None for parameter in teacher_model.parameters())


def test_hooks_are_gone_afterwards() -> None:
    teacher, student = teacher_signals(), student_model()
    before = observe(student)["logits"][0]
    with Intervention(CORE, QKV).apply(student, teacher):
        assert hooks_of(student) == LAYERS * (len(CORE) + len(QKV))
        assert not torch.equal(observe(student)["logits"][0], before)
    assert hooks_of(student) == 0
    assert torch.equal(observe(student)["logits"][0], before)


def test_hooks_are_gone_after_an_exception() -> None:
    teacher, student = teacher_signals(), student_model()
    with pytest.raises(KeyError, match="inside"), Intervention(CORE, QKV).apply(student, teacher):
        raise KeyError("inside")
    assert hooks_of(student) == 0


def test_the_teachers_signal_takes_the_students_dtype() -> None:
    teacher, student = teacher_signals(), student_model().double()
    with Intervention(["attention.probs"]).apply(student, teacher):
        assert observe(student)["logits"][0].dtype == torch.float64


@pytest.mark.parametrize("arguments", [{"replace": ["attention.out"]}, {"detach": ["attention.out"]}])
def test_an_unknown_site_is_refused_at_once(arguments: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match=r"unknown site 'attention\.out'; sites: .*attention\.output"):
        Intervention(**arguments)


def refuse(message: str, site: str = "attention.probs", at: list[int] | None = None, **given: Any) -> None:
    student, teacher = given.get("student", student_model()), given.get("teacher", teacher_signals())
    with pytest.raises(ValueError, match=message), Intervention([site], at=at).apply(student, teacher):
        observe(student)
    assert hooks_of(student) == 0


def test_what_does_not_fit_the_student_is_refused_before_it_runs() -> None:
    for layer in (LAYERS, -1):
        refuse(rf"intervention at layer {layer}: the student's layers are 0 to {LAYERS - 1}", at=[layer])
    shallow = {site: tensors[:1] for site, tensors in teacher_signals().items()}
    refuse("the student has 2 signals and the teacher 1, .*an intervention needs a multiple", teacher=shallow)
    narrow = teacher_signals(num_attention_heads=2)
    refuse(r"no signal of the student's shape \(3, 4, 9, 9\) at 'attention.probs' of layer 0", teacher=narrow)
    refuse(r"call open_attention\(model\) first", student=tiny_model("bert"))


REPLACED = {
    "none": Intervention(),
    "output": Intervention(["attention.projection"], ["attention.query", "attention.key", "attention.value"]),
    "map": Intervention(["attention.probs"], ["attention.query", "attention.key"]),
}


def test_switching_works_in_a_compiled_student() -> None:
    """Nothing of the student changes when the intervention does; a compiled graph says 0 where eager mode says none."""
    sites = ["hidden", "attention.output", "attention.probs", "attention.context"]
    taught, batch = teacher_signals(num_hidden_layers=1), tiny_batch("bert")

    def gradients(student: nn.Module, intervention: Intervention) -> dict[str, torch.Tensor]:
        student.zero_grad()
        with intervention.apply(student, taught):
            signals = SignalCapture(student, sites)(batch)
        torch.stack([tensor.square().mean() for layers in signals.values() for tensor in layers]).sum().backward()
        return {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None and p.grad.any()}

    eager, compiled = (open_attention(tiny_model("bert", seed=2, num_hidden_layers=1)) for _ in range(2))
    compiled.compile(backend="aot_eager")
    for name, intervention in REPLACED.items():
        own, expected = gradients(compiled, intervention), gradients(eager, intervention)
        assert own.keys() == expected.keys(), name
        torch.testing.assert_close(own, expected)
