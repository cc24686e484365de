"""A student of some layers: each layer stays what it was at its old place, in memory, in the exports and after loading."""

import copy
import json

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from qat_lightning import load_packed
from qat_lightning.commands.evaluate import evaluate
from qat_lightning.config.schema import ConfigError
from qat_lightning.exporters.packed.writer import write_packed
from qat_lightning.models.convert import keep_layers, open_attention
from qat_lightning.models.module_paths import layer_paths
from tests.tiny_models import tiny_batch, tiny_model, without_labels
from tests.training.runs import composed, small_run

FULL, SLIDING = "full_attention", "sliding_attention"
LAST = {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}
"""The first two layers see all tokens before one, the last two the nearest three."""
MIXED = LAST | {"layer_types": [SLIDING, FULL, SLIDING, FULL]}


@torch.no_grad()
def logits(model):
    """Of the tokens that are no padding."""
    given = without_labels(tiny_batch("qwen2"))
    return model(**given)["logits"][given["attention_mask"].bool()]


def by_hand(whole, layers, kinds):
    """A model of that many layers that says itself which kind each one is, with the weights of `layers` of `whole`."""
    fields = {name: value for name, value in whole.config.to_dict().items() if name not in ("layer_types", "dtype")}
    made = Qwen2ForCausalLM(Qwen2Config(**fields | {"num_hidden_layers": len(layers), "layer_types": kinds})).eval()
    made.load_state_dict(whole.state_dict(), strict=False)
    for place, layer in enumerate(layers):
        made.model.layers[place].load_state_dict(whole.model.layers[layer].state_dict())
    return made


@pytest.mark.parametrize(
    ("changes", "layers", "kinds", "first_full"),
    [
        (LAST, [1, 3], [FULL, SLIDING], 1),
        (LAST, [0, 1], [FULL, FULL], 2),
        (LAST, [2, 3], [SLIDING, SLIDING], 0),
        (LAST, [3, 0], [SLIDING, FULL], 1),
        (MIXED, [0, 1, 3], [SLIDING, FULL, FULL], 2),
        (MIXED, [2], [SLIDING], 0),
    ],
)
@pytest.mark.parametrize("opened", [False, True])
def test_layers_keep_their_kind_of_attention(tmp_path, changes, layers, kinds, first_full, opened):
    whole = tiny_model("qwen2", **changes)
    expected, other = (
        logits(by_hand(whole, layers, assigned))
        for assigned in (kinds, [{FULL: SLIDING, SLIDING: FULL}[kind] for kind in kinds])
    )
    student = keep_layers(copy.deepcopy(whole), layers)
    if opened:
        open_attention(student)
    assert (student.config.layer_types, student.config.max_window_layers) == (kinds, first_full)
    torch.testing.assert_close(logits(student), expected)
    assert not torch.allclose(logits(student), other, atol=1e-3), "the window is felt"
    student.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(Qwen2ForCausalLM.from_pretrained(tmp_path)), expected)


def test_the_packed_folder_keeps_them(tmp_path):
    student = keep_layers(tiny_model("qwen2", **MIXED), [2, 3])
    write_packed(student, tmp_path / "packed")
    assert json.loads((tmp_path / "packed/config.json").read_text())["layer_types"] == [SLIDING, FULL]
    assert torch.equal(logits(load_packed(tmp_path / "packed")), logits(student))


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "llama", "mistral"])
def test_kept_layers_generate_with_a_cache(family):
    """Each finds its own keys and values, whose place in the cache is the layer's number."""
    student, prompt = keep_layers(tiny_model(family, num_hidden_layers=4), [1, 3]), torch.tensor([[5, 6, 7]])
    with_cache, without = (
        student.generate(prompt, max_new_tokens=5, do_sample=False, use_cache=cache, pad_token_id=1)
        for cache in (True, False)
    )
    assert torch.equal(with_cache, without)
    assert [module.layer_idx for module in student.modules() if hasattr(module, "layer_idx")] == [0, 1]


def test_scores_that_are_divided_by_the_layers_number_are_no_others_number():
    changes = {"n_layer": 4, "scale_attn_by_inverse_layer_idx": True}
    with pytest.raises(ValueError, match=r"layers=\[1, 3\]: .*scale_attn_by_inverse_layer_idx.*keep the first layers"):
        keep_layers(tiny_model("gpt2", **changes), [1, 3])
    assert len(layer_paths(keep_layers(tiny_model("gpt2", **changes), [0, 1]))) == 2


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("[1,1]", r"model\.student_layers=\[1, 1\] names a layer twice"),
        ("[0,2]", r"model\.student_layers=\[0, 2\] must name some of the model's layers, 0 to 1"),
        ("[]", r"model\.student_layers=\[\] must name some"),
    ],
)
def test_layers_are_checked_before_anything_is_loaded(layers, message):
    with pytest.raises(ConfigError, match=message):
        composed(f"model.student_layers={layers}")


def test_a_run_trains_exports_and_scores_kept_layers(tmp_path):
    tiny_model("qwen2", vocab_size=128, max_position_embeddings=64, **LAST).save_pretrained(tmp_path / "model")
    words = (
        f"model.path={tmp_path / 'model'}", "data=random_tokens", "model.student_layers=[1,3]", "losses=logits",
        "quantization=ternary_w2a16", "intervention=none", "intervention_schedule=none", "stages.train.max_steps=4",
    )  # fmt: skip
    results, config = small_run(tmp_path / "run", *words), composed(*words)
    packed = load_packed(tmp_path / "run/export/packed")
    assert (packed.config.num_hidden_layers, packed.config.layer_types) == (2, [FULL, SLIDING])
    assert evaluate(config, tmp_path / "run", "packed")["scores"]["perplexity"] == pytest.approx(results["student"])
