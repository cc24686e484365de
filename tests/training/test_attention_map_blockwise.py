"""losses.map.implementation=blockwise trains as dense does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from qat_lightning.commands.train.preflight import preflight
from qat_lightning.config.builders.models import build_data, build_model, build_student
from qat_lightning.config.builders.training import build_module
from qat_lightning.config.instantiate import create_all
from qat_lightning.config.schema import ConfigError
from qat_lightning.models.sites import FACTORS
from qat_lightning.quantization.modules.attention import InstrumentedAttention
from qat_lightning.training.module import QATModule
from tests.training.runs import composed, planned


def made(*overrides: str, stage: str = "train") -> tuple[QATModule, Any, Any]:
    torch.manual_seed(0)
    config = composed("losses=attention_map", *overrides)
    data = build_data(config)
    data.load()
    model = build_model(config, data)
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)  # else their maps are nearly the same
    return build_module(config, stage, 4, build_student(config, model, data), data, teacher), data, config


BLOCKWISE = "losses.map.implementation=blockwise"


@pytest.mark.parametrize("quantization", ["ternary_w2a8", "lsq_w2a8", "ternary_w2a16"])
@pytest.mark.parametrize("intervention", ["none", "map", "context"])
def test_same_loss_and_gradient_in_training(quantization: str, intervention: str) -> None:
    """Quantized queries and keys, with their straight-through gradients; whatever is replaced by the teacher's."""
    terms, gradients = [], []
    for implementation in ("dense", "blockwise"):
        words = [f"losses.map.implementation={implementation}", f"quantization={quantization}"]
        stage = "train" if intervention == "none" else "intervene"
        module, data, config = made(
            *words, f"intervention={intervention}", f"intervention_schedule={intervention}", stage=stage
        )
        if stage == "intervene":
            module.distillation.intervention = create_all(config.intervention, "intervention")[intervention]
        batch = data.example_batch(4)
        teacher = module.distillation.teacher_signals(batch)
        module.student.eval()
        with module.distillation.intervention.apply(module.student, teacher):
            student = module.distillation.capture_student(batch)
        term = module.distillation.weighted(student, teacher, batch)["map"]
        term.backward()
        terms.append(term)
        gradients.append({name: p.grad for name, p in module.student.named_parameters() if p.grad is not None})
    assert terms[0] > 1e-3
    torch.testing.assert_close(terms[1], terms[0], rtol=1e-5, atol=0.0)
    flat = [torch.cat([gradient.flatten() for gradient in each.values()]) for each in gradients]
    assert gradients[0].keys() == gradients[1].keys()
    torch.testing.assert_close(flat[1], flat[0], rtol=1e-4, atol=1e-5 * float(flat[0].abs().max()))


def test_the_teacher_is_lean_and_only_what_is_read_is_observed() -> None:
    module, _, _ = made(BLOCKWISE)
    assert set(module.distillation.capture_teacher.paths) == {*FACTORS, "hidden"}
    assert all(core.lean for core in module.teacher.modules() if isinstance(core, InstrumentedAttention))
    dense, _, _ = made()
    assert not any(core.lean for core in dense.teacher.modules() if isinstance(core, InstrumentedAttention))


def test_replaced_scores_are_refused_in_words_before_anything_is_trained() -> None:
    """The dense loss sees the teacher's scores there, and the blockwise one would make the student's own."""
    words = ("intervention=map", "intervention_schedule=map", "intervention.map.replace=[attention.scores]")
    refused = r"attention\.scores.*map.*implementation"
    with pytest.raises(ValueError, match=refused):
        made(*words, BLOCKWISE, stage="intervene")
    config = composed("losses=attention_map", *words, BLOCKWISE)
    run = planned(config)
    with pytest.raises(ValueError, match=refused):
        preflight(run, build_model(config, run.data))
    made(*words, stage="intervene")
    made(*words, BLOCKWISE, "losses.map.weight=0", stage="intervene")


def test_configuration_knows_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"losses\.map.*implementation"):
        composed("losses=attention_map", "losses.map.implementation=flash")
    composed("losses=unified_gamma", "losses.unified.first.implementation=blockwise")
