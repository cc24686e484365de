"""A model that was saved and loaded trains as one that was just made: students in training mode, teachers never.

`from_pretrained` returns a model in evaluation mode, and Lightning keeps the mode that it finds.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import nn
from transformers import AutoModelForSequenceClassification

from qat_lightning.config.builders.models import build_data, build_model, build_student
from qat_lightning.config.builders.training import build_module
from qat_lightning.training.module import QATModule, train_unfrozen
from tests.tiny_models import DECODERS, IMAGE_FAMILIES, TEXT_FAMILIES, tiny_model
from tests.training.runs import composed, small_run

STEPS = ("stages.teacher.max_steps=2", "stages.intervene.max_steps=2", "stages.train.max_steps=4")
STAGES = ("teacher", "intervene", "train")
OFTEN = tuple(f"stages.{stage}.checkpoint_every=1" for stage in STAGES)
DATA = {
    **dict.fromkeys(TEXT_FAMILIES, ("data=random_text", "data.vocabulary_size=80")),
    **dict.fromkeys(IMAGE_FAMILIES, ("data=random_images", "data.size=16")),
    **dict.fromkeys(DECODERS, ("data=random_tokens", "data.vocabulary_size=80")),
}
METHOD = {
    **dict.fromkeys(DECODERS, ("losses=logits",)),
    "gpt2": ("losses=logits", "~intervention.map", "intervention_schedule=output"),
}


class KilledError(BaseException):
    """Ends a run from outside of it, as a signal does."""


class Modes:
    """Records, at each batch of each stage, whether all of the student trains and whether any of the teacher does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: dict[str, list[tuple[str, bool, bool]]] = defaultdict(list)
        self.die_after: tuple[str, int] | None = None
        for kind in ("training_step", "validation_step"):
            monkeypatch.setattr(QATModule, kind, self._recording(kind, getattr(QATModule, kind)))

    def _recording(self, kind: str, step: Any) -> Any:
        def recorded(module: QATModule, batch: Any, index: int) -> Any:
            if kind == "training_step" and self.die_after == (module.stage, module.trainer.global_step):
                raise KilledError
            student, teacher = module.student.modules(), module.teacher.modules() if module.teacher else ()
            training = [part.training for part in student]
            agreed = all(training) if kind == "training_step" else not any(training)
            self.seen[module.stage].append((kind, agreed, any(part.training for part in teacher)))
            return step(module, batch, index)

        return recorded


def saved(family: str, folder: Path, **changes: Any) -> tuple[str, str]:
    tiny_model(family, **changes).save_pretrained(folder)
    return f"model.path={folder}", "model.pretrained=true"


@pytest.mark.parametrize(
    "family",
    [pytest.param(family, marks=[] if family in ("bert", "vit", "gpt2") else pytest.mark.slow) for family in DATA],
)
def test_each_stage_trains_the_loaded_model_in_training_mode_and_so_does_a_continued_one(family, tmp_path, monkeypatch):
    given = (*saved(family, tmp_path / "model"), *DATA[family], *METHOD.get(family, ()), *STEPS, *OFTEN)
    modes = Modes(monkeypatch)
    for stage in STAGES if family == "bert" else ("train",):
        modes.die_after = (stage, 1)
        with pytest.raises(KilledError):
            small_run(tmp_path / "run", *given, "export.packed=false")
    modes.die_after = None
    small_run(tmp_path / "run", *given, "export.packed=false")
    for stage in STAGES:
        trained = [seen for seen in modes.seen[stage] if seen[0] == "training_step"]
        assert len(trained) == 2, "before and after a kill together"
        assert all(agreed for _, agreed, _ in modes.seen[stage]), stage
        assert not any(teaching for _, _, teaching in modes.seen[stage]), stage


def test_a_loaded_model_ends_as_the_same_weights_that_were_never_saved(tmp_path):
    """Bit for bit, so dropout draws and the warm-up measures the same."""
    method = (*STEPS, "quantization=lsq_w2a8", "quantization.weight.bits=4", "callbacks=step_size_warmup",
              "callbacks.step_size_warmup.steps=2", "export.packed=false")  # fmt: skip
    made = small_run(tmp_path / "made", *method)
    config = composed(*method)
    data = build_data(config)
    data.load()
    seed_everything(config.seed, verbose=False)
    build_model(config, data).save_pretrained(tmp_path / "model")
    path = (f"model.path={tmp_path / 'model'}", "model.pretrained=true")
    loaded = small_run(tmp_path / "loaded", *method, *path)
    assert loaded["student_hash"] == made["student_hash"]


def test_dropout_of_a_loaded_model_changes_what_it_learns(tmp_path):
    hashes = set()
    for share in (0.0, 0.5):
        given = saved(
            "bert", tmp_path / f"model {share}", hidden_dropout_prob=share, attention_probs_dropout_prob=share
        )
        results = small_run(tmp_path / f"run {share}", *given, *DATA["bert"], *STEPS, "export.packed=false")
        hashes.add(results["student_hash"])
    assert len(hashes) == 2


def test_activations_of_a_loaded_model_are_checkpointed(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path)
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    config = composed("activation_checkpointing=true", "data.vocabulary_size=80")
    data = build_data(config)
    data.load()
    module = build_module(config, "train", 1, build_student(config, student, data), data)
    passes = []
    student.bert.encoder.layer[0].intermediate.register_forward_hook(lambda *_: passes.append(1))
    module.on_fit_start()
    module.distillation.capture_student(data.example_batch(2))["logits"][0].sum().backward()
    assert len(passes) == 2, "once forward, once more in the backward pass"


def test_frozen_parts_keep_the_mode_they_have():
    model = tiny_model("bert")
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[0].requires_grad_(False).train()
    train_unfrozen(model)
    assert not any(part.training for part in model.bert.embeddings.modules())
    assert all(part.training for part in model.bert.encoder.layer.modules())
    assert model.classifier.training
    assert model.dropout.training
    bare = nn.Dropout(0.5).eval()
    train_unfrozen(bare)
    assert bare.training
    frozen = tiny_model("bert").requires_grad_(False)
    train_unfrozen(frozen)
    assert not any(part.training for part in frozen.modules())
    assert torch.equal(frozen.classifier.weight, tiny_model("bert").classifier.weight)
