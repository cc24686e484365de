"""Which weights a model starts with: those of the path that was typed, whole, or random ones that were asked for."""

import json
import logging
from dataclasses import replace

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageClassification

from qat_lightning.commands.evaluate import evaluate
from qat_lightning.config.builders.models import build_data, build_model
from qat_lightning.config.builders.pretrained import random_weights
from qat_lightning.config.run_config import read_run
from qat_lightning.config.schema import ConfigError, ModelConfig
from qat_lightning.config.validation import check
from tests.tiny_models import tiny_model
from tests.training.runs import composed, saved_tiny, small_run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return saved_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def bare():
    return composed()


def built(*overrides):
    """The model, and the lines that a user reads about it."""
    config, lines = composed(*overrides), []
    return build_model(config, build_data(config), lines.append), lines


def checked_and_built(config):
    check(config)
    return build_model(config, build_data(config))


def changed(folder, source, name=lambda name: name, **settings):
    """A copy of a model's folder: `name` gives each tensor another name, or None to leave it out."""
    folder.mkdir()
    described = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | settings))
    tensors = {name(old): tensor for old, tensor in load_file(source / "model.safetensors").items()}
    save_file({new: tensor for new, tensor in tensors.items() if new}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("group", ["tiny", "vit_digits", "bert_base"])
@pytest.mark.parametrize(
    ("given", "pretrained"),
    [(("model.path={path}",), True), (("model.path={path}", "model.pretrained=false"), False)],
)
def test_a_typed_path_is_loaded_whatever_the_group_says(tiny, group, given, pretrained):
    words = [word.format(path=tiny) for word in given]
    config = composed(f"model={group}", *words)
    assert config.model.pretrained is pretrained, "resolved: a run folder holds what was done"
    model, lines = built(f"model={group}", *words)
    own, saved = model.state_dict(), load_file(tiny / "model.safetensors")
    assert torch.equal(own["classifier.weight"], saved["classifier.weight"]) is pretrained
    assert lines[0].startswith("weights of" if pretrained else "random weights (model.pretrained=false)")


@pytest.mark.parametrize(("group", "pretrained"), [("tiny", False), ("vit_small", False), ("bert_base", True)])
def test_without_a_path_the_group_decides(group, pretrained):
    assert composed(f"model={group}").model.pretrained is pretrained


@pytest.mark.parametrize("budget", ["max_steps", "max_epochs"])
@pytest.mark.parametrize("model", [(), ("model=bert_base", "model.pretrained=false")])
def test_random_weights_need_a_teacher_stage(budget, model):
    with pytest.raises(ConfigError, match=rf"stages\.teacher\.{budget}=0 leaves a teacher with random weights"):
        composed(*model, f"stages.teacher.{budget}=0")


def test_without_a_teacher_training_from_random_weights_is_allowed():
    composed(
        "stages.teacher.max_steps=0", "teacher=none", "losses=task", "intervention=none", "intervention_schedule=none"
    )


def test_a_given_teacher_is_the_runs_teacher_and_every_command_agrees(tmp_path, tiny, capsys):
    """Before, `model=` that starts with random weights took the folder's architecture alone."""
    words = (f"model.path={tiny}", "stages.teacher.max_steps=0", "stages.train.max_steps=7", "export.packed=false")
    results = small_run(tmp_path / "run", *words)
    assert capsys.readouterr().out.splitlines()[0] == f"model: weights of {str(tiny)!r}"
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["model"]["pretrained"] is True
    teacher = load_file(tmp_path / "run/checkpoints/teacher.safetensors")
    assert all(torch.equal(teacher[name], tensor) for name, tensor in load_file(tiny / "model.safetensors").items())
    again = evaluate(read_run(tmp_path / "run"), tmp_path / "run", "student")
    assert again["scores"]["accuracy"] == again["recorded"] == results["student"]


@pytest.mark.parametrize(
    ("rename", "settings", "message"),
    [
        (lambda name: f"module.{name}", {}, r"missing: 37 \(such as 'bert\.emb.*unused: 41.*without DataParallel"),
        (lambda name: f"_orig_mod.{name}", {}, r"missing: 37 .*unused: 41 \(such as '_orig_mod\..*torch\.compile"),
        (lambda name: name.replace("bert.", "roberta."), {}, r"missing: 37 .*unused: 39 \(such as 'roberta\."),
        (lambda name: None if ".layer.1." in name else name, {}, r"missing: 16 \(such as 'bert\.encoder\.layer\.1\."),
        (lambda name: name, {"num_hidden_layers": 3}, r"missing: 16 \(such as 'bert\.encoder\.layer\.2\."),
        (lambda name: name, {"num_hidden_layers": 1}, r"in layers, but not of the model: 16 \(such as 'bert.*layer\.1\."),
        (lambda name: None if "embeddings.word" in name else name, {}, r"missing: 1 \(such as 'bert\.embeddings\.word"),
        (lambda name: name, {"vocab_size": 99}, r"of another shape: 1 \(.*word_embeddings.* \(128, 32\) for \(99, 32\)"),
        (lambda name: name, {"intermediate_size": 48}, r"of another shape: 6 \(such as .*\(64,\) for \(48,\)'\)"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_with_counts_and_an_example(tmp_path, tiny, rename, settings, message):
    folder = changed(tmp_path / "model", tiny, rename, **settings)
    with pytest.raises(ConfigError, match=message) as refused:
        built(f"model.path={folder}", "stages.teacher.max_steps=4")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["distilbert", "vit", "gpt2", "llama"])
def test_a_missing_layer_is_refused_in_every_kind_of_family(tmp_path, name):
    model = tiny_model(name)
    model.save_pretrained(tmp_path / "whole")
    part = {"distilbert": ".layer.1.", "vit": "layer.1.", "gpt2": "h.1.", "llama": "layers.1."}[name]
    folder = changed(tmp_path / "part", tmp_path / "whole", lambda tensor: None if part in tensor else tensor)
    data = {"vit": "random_images", "gpt2": "random_tokens", "llama": "random_tokens"}.get(name, "random_text")
    with pytest.raises(ConfigError, match=r"missing: \d+ \(such as '.*1\."):
        built(f"model.path={folder}", f"data={data}")


@pytest.mark.parametrize(
    ("family", "kind", "data", "new", "unused"),
    [
        ("bert", "BertModel", "random_text", 2, 0),
        ("bert", "BertForMaskedLM", "random_text", 4, 5),  # no pooler, and a head for masked tokens
        ("bert", "BertModel", "random_questions", 2, 2),  # whose model has no pooler
        ("distilbert", "DistilBertForMaskedLM", "random_text", 4, 5),  # pre_classifier and classifier are the head
        ("roberta", "RobertaForMaskedLM", "random_text", 4, 5),
        ("electra", "ElectraForPreTraining", "random_text", 4, 4),
        ("vit", "ViTModel", "random_images", 2, 2),  # its pooler
        ("vit", "ViTForMaskedImageModeling", "random_images", 2, 3),  # the token for masked patches among them
        ("gpt2", "GPT2Model", "random_tokens", 0, 0),  # the head is tied
        ("gpt2", "GPT2LMHeadModel", "random_text", 1, 0),
        ("llama", "LlamaModel", "random_tokens", 1, 0),
    ],
)
def test_only_a_head_may_be_new_and_that_is_said(tmp_path, family, kind, data, new, unused):
    config = tiny_model(family).config
    saved = getattr(transformers, kind)(config)
    saved.save_pretrained(tmp_path / "model")
    model, (line, *_) = built(f"model.path={tmp_path / 'model'}", f"data={data}")
    assert ("newly initialized in the head: " in line, "unused: " in line) == (new > 0, unused > 0)
    assert f"head: {new} " in line or not new
    assert f"unused: {unused} " in line or not unused
    backbone, base = model.base_model.state_dict(), saved.base_model.state_dict()
    shared = [name for name in backbone if name in base]
    assert shared
    assert all(torch.equal(backbone[name], base[name]) for name in shared)


def test_constants_that_old_files_hold_are_no_weights_of_another_model(tmp_path):
    """As the files of GPT-2 on the hub hold `h.0.attn.masked_bias`."""
    tiny_model("gpt2").save_pretrained(tmp_path / "new")
    folder = changed(tmp_path / "old", tmp_path / "new")
    tensors = load_file(folder / "model.safetensors") | {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    built(f"model.path={folder}", "data=random_tokens")


def test_biases_that_the_configuration_leaves_out_are_refused(tmp_path):
    """They would be dropped, and every attention be another."""
    tiny_model("llama", attention_bias=True).save_pretrained(tmp_path / "with")
    folder = changed(tmp_path / "without", tmp_path / "with", attention_bias=False)
    with pytest.raises(ConfigError, match=r"in layers, but not of the model: 8 \(such as .*k_proj\.bias"):
        built(f"model.path={folder}", "data=random_tokens")


def test_what_transformers_warns_of_is_said_in_a_line(tiny, monkeypatch):
    read = AutoConfig.from_pretrained

    def warns(*given, **named):
        logging.getLogger("transformers.somewhere").warning("two\nlines \x1b[31m")
        return read(*given, **named)

    monkeypatch.setattr(AutoConfig, "from_pretrained", warns)
    before = logging.getLogger("transformers").level
    _, lines = built(f"model.path={tiny}")
    assert lines[1:] == ["transformers warns: two lines [31m"]
    assert logging.getLogger("transformers").level == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "bert", ', "Expecting property name"),
        ("", "Expecting value"),
        (b"\xff\xfe", "cannot be read as JSON"),
        ("[" * 100_000, "maximum recursion depth"),
        ("[]", "it is not a JSON object"),
        ({"num_hidden_layers": "six"}, "num_hidden_layers='six' is not 1 or more layers"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0 is not 1 or more layers"),
        ({"model_type": "nope"}, "model type `nope`"),
        ({"vocab_size": "x"}, "Field 'vocab_size' expected int"),
        ({"id2label": ["a"]}, "no attribute 'items'"),
        ({"hidden_size": 33}, "not a multiple of the number of attention heads"),
        ({"num_attention_heads": 0}, "by zero"),
        ({"hidden_act": "nope"}, "KeyError 'nope'"),
        ({"add_cross_attention": True}, "BertLayer.* …$"),  # whose message is the whole module
    ],
)
@pytest.mark.parametrize("pretrained", [True, False])
def test_a_damaged_config_is_named(tmp_path, tiny, bare, content, message, pretrained):
    place = changed(tmp_path / "model", tiny) / "config.json"
    if isinstance(content, dict):
        content = json.dumps(json.loads(place.read_text()) | content)
    place.write_bytes(content if isinstance(content, bytes) else content.encode())
    config = replace(bare, model=replace(bare.model, path=str(place.parent), pretrained=pretrained))
    with pytest.raises(ConfigError, match=message) as refused:
        checked_and_built(config)
    message = str(refused.value)
    assert "config.json" in message
    assert str(place.parent) in message
    assert "\n" not in message
    assert len(message) < 700


def test_a_family_with_several_classes_for_one_head_starts_with_random_weights():
    architecture = AutoConfig.for_model("deit", hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    model = random_weights(ModelConfig(), architecture, AutoModelForImageClassification)
    assert type(model).__name__ == "DeiTForImageClassification"
