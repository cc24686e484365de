"""Models from folders and from architectures; what is refused about them."""

import json

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from safetensors.torch import load_file
from torchmetrics import Metric
from transformers import BertConfig, BertForSequenceClassification, OPTConfig, OPTForSequenceClassification

from qat_lightning.config.builders.models import build_data, build_model, build_student
from qat_lightning.config.builders.training import build_callbacks, build_module, build_trainer
from qat_lightning.config.schema import ConfigError
from qat_lightning.models.size import bits
from qat_lightning.training.callbacks import StepSizeWarmup
from tests.training.runs import composed

ARCHITECTURE = {
    "vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def fine_tuned(tmp_path):
    """A folder with a model that has a head for three classes."""
    folder = tmp_path / "model"
    BertForSequenceClassification(BertConfig(**ARCHITECTURE, num_labels=3)).save_pretrained(folder)
    return folder


def built(*overrides: str):
    config = composed(*overrides)
    return build_model(config, build_data(config))


def test_weights_of_a_folder_are_taken_over_head_included(fine_tuned):
    model = built(f"model.path={fine_tuned}", "model.pretrained=true", "data.num_labels=3")
    saved = load_file(fine_tuned / "model.safetensors")
    assert set(saved) == set(model.state_dict())
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())


def test_random_weights_of_the_folders_architecture(fine_tuned):
    model = built(f"model.path={fine_tuned}", "model.pretrained=false", "data.num_labels=3")
    saved = load_file(fine_tuned / "model.safetensors")
    assert model.config.hidden_size == 32
    assert not torch.equal(model.classifier.weight, saved["classifier.weight"])


def test_configured_architecture_without_any_file():
    model = built("model=bert_large", "model.pretrained=false", "+model.architecture.hidden_dropout_prob=0.25",
                  "model.architecture.num_hidden_layers=1")  # fmt: skip
    assert model.config.hidden_size == 1024
    assert model.config.hidden_dropout_prob == 0.25


def test_head_of_another_number_of_classes_is_initialized_again(fine_tuned):
    model = built(f"model.path={fine_tuned}", "model.pretrained=true", "data.num_labels=5")
    saved = load_file(fine_tuned / "model.safetensors")
    assert model.classifier.weight.shape == (5, 32)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.bert.state_dict(prefix="bert.").items())


def test_a_new_head_must_be_trained(fine_tuned):
    with pytest.raises(ConfigError, match="has no classifier for this data, and no teacher stage trains one"):
        built(f"model.path={fine_tuned}", "model.pretrained=true", "data.num_labels=5", "stages.teacher.max_steps=0")


def test_pickled_weights_are_refused(fine_tuned):
    (fine_tuned / "model.safetensors").unlink()
    torch.save({}, fine_tuned / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"model\.path=.*cannot be loaded"):
        built(f"model.path={fine_tuned}", "model.pretrained=true", "data.num_labels=3")


def test_missing_path_is_named():
    with pytest.raises(ConfigError, match=r"model\.path must be given"):
        built("model.pretrained=true")


def test_family_without_a_table_is_refused_before_training(tmp_path):
    small = OPTConfig(
        vocab_size=128, hidden_size=32, ffn_dim=32, num_hidden_layers=1, num_attention_heads=4, num_labels=2
    )
    OPTForSequenceClassification(small).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"'opt'.*; known: bert, roberta"):
        built(f"model.path={tmp_path / 'model'}", "model.pretrained=true")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model=tiny_vit",), "a vit model has no head for text classification: choose another model=… or data=…"),
        (("model=tiny", "data=random_images"), "a bert model has no head for image classification"),
        (("model=tiny_vit", "data=random_questions"), "a vit model has no head for question answering"),
    ],
)
def test_model_without_the_datas_head_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        built(*overrides)


def test_ternary_coverage_is_the_papers():
    config = composed()
    data = build_data(config)
    data.load()
    widths = bits(build_student(config, build_model(config, data), data))
    assert {kind for kind, width in widths.items() if width == 2} == {
        "embeddings.word", "attention.query", "attention.key", "attention.value", "attention.projection",
        "feedforward.in", "feedforward.out", "pooler",
    }  # fmt: skip
    assert {kind for kind, width in widths.items() if width == 32} == {
        "embeddings.position", "embeddings.token_type", "head",
    }  # fmt: skip


def test_code_that_comes_with_a_model_is_not_run(tmp_path, fine_tuned):
    canary = tmp_path / "canary"
    (fine_tuned / "evil.py").write_text(f"open({str(canary)!r}, 'w').write('run')")
    described = json.loads((fine_tuned / "config.json").read_text())
    described["auto_map"] = {"AutoModelForSequenceClassification": "evil.Evil", "AutoConfig": "evil.Evil"}
    (fine_tuned / "config.json").write_text(json.dumps(described))
    built(f"model.path={fine_tuned}", "model.pretrained=true", "data.num_labels=3")
    assert not canary.exists()


WATCH = "+callbacks.watch={_target_: lightning.pytorch.callbacks.%s, monitor: %s}"


@pytest.mark.parametrize(
    ("overrides", "mode"),
    [
        (("callbacks=early_stopping",), "max"),
        (("callbacks=early_stopping", "data=random_tokens"), "min"),  # perplexity
        (("callbacks=early_stopping", "callbacks.early_stopping.mode=min"), "min"),
        (("callbacks=early_stopping", "data=random_tokens", "callbacks.early_stopping.mode=max"), "max"),
        (("callbacks=early_stopping", "callbacks.early_stopping.monitor=train/loss"), "min"),
        (("callbacks=early_stopping", "callbacks.early_stopping.monitor=train/loss_task"), "min"),
        (("callbacks=early_stopping", "+callbacks.early_stopping._partial_=true"), "max"),
        ((WATCH % ("EarlyStopping", "val/accuracy"),), "max"),  # Lightning's own default would be min
        ((WATCH % ("ModelCheckpoint", "val/accuracy"),), "max"),
        ((WATCH % ("ModelCheckpoint", "analysis/ranking_loss"),), "min"),
        ((WATCH % ("EarlyStopping", "train/loss"), "+callbacks.watch.mode=max"), "max"),
        ((WATCH % ("EarlyStopping", "step_sizes/weights/pooler"), "+callbacks.watch.mode=max"), "max"),
    ],
    ids=str,
)
def test_a_callback_knows_the_better_end_of_what_it_watches(overrides, mode):
    config = composed(*overrides)
    (name,) = config.callbacks
    kind = EarlyStopping if "EarlyStopping" in config.callbacks[name]["_target_"] else ModelCheckpoint
    (made,) = (c for c in build_callbacks(config, "train", build_data(config)) if type(c) is kind)
    assert made.mode == mode


@pytest.mark.parametrize("monitor", ["lr", "step_sizes/weights/pooler", "val/nothing"])
def test_a_better_end_that_is_not_known_must_be_given(monitor):
    config = composed(WATCH % ("EarlyStopping", monitor))
    with pytest.raises(ConfigError, match=rf"callbacks\.watch\.mode must be given: is {monitor} better"):
        build_callbacks(config, "train", build_data(config))


class NotDefined(Metric):
    higher_is_better = True

    def update(self, *answers):
        """Nothing is kept."""

    def compute(self):
        return torch.tensor(float("nan"))


@pytest.mark.parametrize(
    ("check_finite", "steps", "said"),
    [
        ("false", 2, "counts as not better|not improve in the last 2 records"),
        ("true", 1, "ends the stage|is not finite"),
    ],
)
def test_a_score_that_is_not_defined_is_said(tmp_path, capsys, check_finite, steps, said):
    settings = ("patience=2", f"check_finite={check_finite}")
    config = composed("callbacks=early_stopping", *(f"callbacks.early_stopping.{one}" for one in settings))
    data = build_data(config)
    data.load()
    data.metrics = {"accuracy": NotDefined()}
    trainer = build_trainer(config, "teacher", 5, tmp_path, build_callbacks(config, "teacher", data))
    trainer.fit(build_module(config, "teacher", 5, build_model(config, data), data), datamodule=data)
    assert trainer.global_step == steps
    first, last = capsys.readouterr().out.splitlines()
    when, why = said.split("|")
    assert first == f"stage teacher, step 1: val/accuracy is nan, which {when}" + " (check_finite=true)" * (steps == 1)
    assert last.startswith(f"stage teacher: early stopping after step {steps} of 5. Monitored metric val/accuracy")
    assert why in last


@pytest.mark.parametrize(
    ("overrides", "stages"),
    [
        ((), ["intervene"]),
        (("intervention=none", "intervention_schedule=none"), ["train"]),
        (("stages.intervene.max_steps=0",), ["train"]),
    ],
)
def test_step_sizes_warm_up_in_the_students_first_stage(overrides, stages):
    """The step sizes are not initialized again after the intervene stage, which has trained them."""
    config = composed("callbacks=step_size_warmup", *overrides)
    data = build_data(config)
    warming = [
        stage
        for stage in ("teacher", "intervene", "train")
        if any(isinstance(callback, StepSizeWarmup) for callback in build_callbacks(config, stage, data))
    ]
    assert warming == stages


@pytest.mark.parametrize(
    ("cuda", "given", "fused"), [(True, [], True), (False, [], None), (True, ["optimizer.fused=false"], False)]
)
def test_adamw_is_fused_on_cuda_unless_told_otherwise(monkeypatch, cuda, given, fused):
    """It can leave out a step by itself, so the guard of the numbers lets the host go on."""
    config = composed(*given)
    data = build_data(config)
    data.load()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    module = build_module(config, "teacher", 1, build_model(config, data), data)
    assert module.make_optimizer.keywords["fused"] is fused
