"""Settings of task and generation in a model folder: stale ones have no effect, the rest reaches the exports."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from qat_lightning import load_packed
from qat_lightning.config.builders.models import build_data, build_model
from qat_lightning.exporters.packed.untrusted_files import PackedError
from qat_lightning.exporters.packed.writer import write_packed
from qat_lightning.models.capture import SignalCapture
from tests.tiny_models import tiny_batch, tiny_model, without_labels
from tests.training.runs import composed, saved_tiny

GENERATION = {
    "max_new_tokens": 7,
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
    "eos_token_id": [3, 5],
    "pad_token_id": 0,
}
REGRESSION = (
    "data.num_labels=1", "~data.metrics.accuracy", "data.metric=pearson",
    "+data.metrics.pearson={_target_: torchmetrics.PearsonCorrCoef}",
)  # fmt: skip


def with_config(folder, **settings):
    place = folder / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | settings))
    return folder


def built(folder, *overrides):
    config = composed(f"model.path={folder}", *overrides)
    return build_model(config, build_data(config)).eval()


@pytest.mark.parametrize("stale", ["regression", "single_label_classification", "multi_label_classification"])
@pytest.mark.parametrize(
    ("overrides", "kind"), [((), "single_label_classification"), (REGRESSION, "regression")], ids=["classes", "score"]
)
def test_a_problem_type_of_an_earlier_task_has_no_effect(tmp_path, stale, overrides, kind):
    model = built(with_config(saved_tiny(tmp_path / "model"), problem_type=stale), *overrides)
    assert model.config.problem_type == kind
    batch = tiny_batch("bert")
    labels = batch["labels"] % 2 if kind != "regression" else batch["labels"].float()
    output = model(**without_labels(batch), labels=labels)
    if kind == "regression":
        expected = torch.nn.functional.mse_loss(output.logits.squeeze(-1), labels)
    else:
        expected = torch.nn.functional.cross_entropy(output.logits, labels)
    torch.testing.assert_close(output.loss, expected)
    write_packed(model, tmp_path / "packed")
    assert load_packed(tmp_path / "packed").config.problem_type == kind


def test_a_model_that_is_set_to_answer_in_tuples_is_trained(tmp_path):
    stale = {"return_dict": False, "output_hidden_states": True, "output_attentions": True}
    model = built(with_config(saved_tiny(tmp_path / "model"), **stale))
    assert [tuple(logits.shape) for logits in SignalCapture(model)(tiny_batch("bert"))["logits"]] == [(3, 2)]
    output = model(**without_labels(tiny_batch("bert")))
    assert list(output) == ["logits"]


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_decoder_trains_without_a_cache_and_is_exported_as_it_came(tmp_path, use_cache):
    tiny_model("llama", use_cache=use_cache).save_pretrained(tmp_path / "model")
    model, seen = built(tmp_path / "model", "data=random_tokens"), []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.past_key_values))
    SignalCapture(model)(tiny_batch("llama"))
    assert seen == [None]
    write_packed(model, tmp_path / "packed")
    assert load_packed(tmp_path / "packed").config.use_cache is use_cache


@pytest.fixture
def generating(tmp_path):
    """A folder of a decoder with settings of its own for generating."""
    model = tiny_model("llama")
    model.generation_config = GenerationConfig(**GENERATION)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_settings_for_generating_reach_the_packed_folder(tmp_path, generating):
    manifest = write_packed(built(generating, "data=random_tokens"), tmp_path / "packed")
    assert "generation_config.json" in manifest["files"]
    packed, plain = load_packed(tmp_path / "packed"), AutoModelForCausalLM.from_pretrained(generating)
    assert {name: getattr(packed.generation_config, name) for name in GENERATION} == GENERATION
    prompt = torch.tensor([[4, 9, 2]])
    torch.manual_seed(3)
    expected = plain.generate(prompt)
    torch.manual_seed(3)
    assert torch.equal(packed.generate(prompt), expected)


def test_settings_of_compilation_are_not_exported(tmp_path, generating):
    model = built(generating, "data=random_tokens")
    model.generation_config.compile_config = {"backend": "eager"}
    write_packed(model, tmp_path / "packed")
    assert "compile_config" not in json.loads((tmp_path / "packed/generation_config.json").read_text())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"generate": "x"}, "'generate' is not a field that is read"),
        ({"compile_config": {"backend": "x"}}, "'compile_config' is not a field that is read"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
    ],
)
def test_unknown_settings_are_refused(tmp_path, generating, monkeypatch, content, message):
    """A manifest that agrees with them does not help."""
    monkeypatch.setattr("qat_lightning.exporters.packed.writer.make_generation", lambda model: content)
    write_packed(built(generating, "data=random_tokens"), tmp_path / "packed")
    with pytest.raises(PackedError, match=message):
        load_packed(tmp_path / "packed")


def test_settings_that_were_changed_are_refused(tmp_path, generating):
    write_packed(built(generating, "data=random_tokens"), tmp_path / "packed")
    (tmp_path / "packed/generation_config.json").write_text('{"max_new_tokens": 8}')
    with pytest.raises(PackedError, match=r"generation_config\.json is not the file that was exported"):
        load_packed(tmp_path / "packed")
