"""Every site and part exists in every family, with the shape that its axes say."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.convert import open_attention
from qat_lightning.models.families import FAMILIES
from qat_lightning.models.module_paths import attention_paths, entrances, family, layer_paths, part_paths, site_paths
from qat_lightning.models.sites import AXES, CORE_SITES, FUSED
from tests.tiny_models import (
    CLASSES,
    DECODERS,
    HEADS,
    INNER,
    LAYERS,
    LENGTHS,
    OTHER_DECODERS,
    OTHER_IMAGES,
    OTHER_TEXTS,
    TEXT_FAMILIES,
    VOCABULARY,
    WIDTH,
    tiny_batch,
    tiny_model,
)
from tests.tiny_models import FAMILIES as TESTED

_SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}

# 16×16 pixels in patches of 8, one class token; DeiT has a distillation token as well
TOKENS = dict.fromkeys(TEXT_FAMILIES, max(LENGTHS)) | {"vit": 5, "deit": 6}


def test_every_family_is_tested() -> None:
    assert set(FAMILIES) == {*TESTED, *DECODERS, *OTHER_TEXTS, *OTHER_IMAGES, *OTHER_DECODERS}


@pytest.mark.parametrize("name", DECODERS)
def test_sites_of_a_decoder(name: str) -> None:
    """Grouped heads make keys and values narrower; GPT-2 has query, key and value in one layer."""
    sites = [site for site in AXES if name != "gpt2" or site not in FUSED]
    signals = SignalCapture(open_attention(tiny_model(name)), sites)(tiny_batch(name))
    samples, tokens, narrow = len(LENGTHS), max(LENGTHS), WIDTH // HEADS * 2
    shapes = dict.fromkeys(AXES, (samples, tokens, WIDTH)) | {"logits": (samples, tokens, VOCABULARY)}
    shapes |= dict.fromkeys(("attention.key", "attention.value"), (samples, tokens, narrow))
    shapes |= dict.fromkeys(("attention.scores", "attention.probs"), (samples, HEADS, tokens, tokens))
    shapes["attention.context"] = (samples, HEADS, tokens, WIDTH // HEADS)
    counts = dict.fromkeys(AXES, LAYERS) | {"hidden": LAYERS + 1, "logits": 1}
    for site in sites:
        assert [tensor.shape for tensor in signals[site]] == [shapes[site]] * counts[site], site
    probs = signals["attention.probs"][0]
    assert not probs.triu(1).any(), "a token looks at none after it"
    torch.testing.assert_close(probs.sum(-1)[0], torch.ones(HEADS, tokens))


def test_gpt2_has_no_query_of_its_own() -> None:
    with pytest.raises(
        ValueError, match=r"gpt2 model has no site 'attention.query'.*one layer; sites: logits, hidden, .*probs"
    ):
        site_paths(tiny_model("gpt2"), "attention.query")


def test_what_a_gradient_must_not_enter() -> None:
    assert [len(paths) for paths in entrances(tiny_model("bert"), ["attention.query", "attention.key"])] == [2, 2]
    gpt2 = tiny_model("gpt2")
    fused = ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
    assert entrances(gpt2, ["attention.query", "attention.key", "attention.value"]) == [fused]
    with pytest.raises(ValueError, match=r"gpt2 model computes .* in one layer.*not for attention.value: choose"):
        entrances(gpt2, ["attention.query", "attention.key"])


@pytest.mark.parametrize("name", ["bert", "vit", "distilbert", "llama"])
def test_residual_is_what_layer_normalization_takes(name: str) -> None:
    model = open_attention(tiny_model(name))
    signals = SignalCapture(model, ["attention.residual", "attention.output"])(tiny_batch(name))
    for index, residual in enumerate(signals["attention.residual"]):
        normalization = model.get_submodule(site_paths(model, "attention.residual")[index])
        torch.testing.assert_close(normalization(residual), signals["attention.output"][index])


@pytest.mark.parametrize("name", TESTED)
def test_every_site_has_its_shape_and_count(name: str) -> None:
    tokens = TOKENS[name]
    assert tokens != WIDTH // HEADS, "else the axes M and D look alike"
    sizes = {"B": len(LENGTHS), "N": tokens, "M": tokens, "H": HEADS, "D": WIDTH // HEADS, "E": WIDTH, "C": CLASSES}
    signals = SignalCapture(open_attention(tiny_model(name)), AXES)(tiny_batch(name))
    counts = dict.fromkeys(AXES, LAYERS) | {"hidden": LAYERS + 1, "logits": 1}
    assert signals.keys() == AXES.keys()
    for site, tensors in signals.items():
        assert len(tensors) == counts[site], site
        for tensor in tensors:
            assert tensor.shape == tuple(sizes[axis] for axis in AXES[site]), site


@pytest.mark.parametrize("name", TESTED)
def test_sites_agree_with_one_another(name: str) -> None:
    """probs = softmax(scores); the projection is W_O · context; the layers follow each other."""
    model = open_attention(tiny_model(name))
    with torch.no_grad():
        signals = SignalCapture(model, AXES)(tiny_batch(name))
        for layer in range(LAYERS):
            scores = signals["attention.scores"][layer]
            assert torch.equal(signals["attention.probs"][layer], scores.softmax(-1))
            merged = signals["attention.context"][layer].transpose(1, 2).flatten(2)
            project = model.get_submodule(part_paths(model)[f"layers.{layer}.attention.projection"])
            assert torch.equal(signals["attention.projection"][layer], project(merged))
            width = WIDTH // HEADS
            query, key = (
                signals[f"attention.{name}"][layer].unflatten(-1, (HEADS, width)) for name in ("query", "key")
            )
            products = torch.einsum("bnhd,bmhd->bhnm", query, key) * width**-0.5
            seen = scores > -1e4
            assert seen.any()
            torch.testing.assert_close(scores[seen], products[seen])


@pytest.mark.parametrize("name", TESTED)
def test_parts_are_the_modules_with_weights(name: str) -> None:
    """Every linear layer, embedding table and convolution on patches is a part, and its width is what its name says."""
    model = tiny_model(name)
    parts = part_paths(model)
    kinds = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv2d)
    with_weights = {path for path, module in model.named_modules() if isinstance(module, kinds)}
    assert set(parts.values()) == with_weights
    for layer in range(LAYERS):
        for part in ("query", "key", "value", "projection"):
            assert model.get_submodule(parts[f"layers.{layer}.attention.{part}"]).weight.shape == (WIDTH, WIDTH)
        assert model.get_submodule(parts[f"layers.{layer}.feedforward.in"]).weight.shape == (INNER, WIDTH)
        assert model.get_submodule(parts[f"layers.{layer}.feedforward.out"]).weight.shape == (WIDTH, INNER)
    assert model.get_submodule(parts["head"]).weight.shape == (CLASSES, WIDTH)


def test_dense_layer_of_the_head_is_called_pooler_everywhere() -> None:
    paths = {name: part_paths(tiny_model(name)).get("pooler") for name in TESTED}
    assert paths == {
        "bert": "bert.pooler.dense",
        "roberta": "classifier.dense",
        "electra": "classifier.dense",
        "distilbert": "pre_classifier",
        "vit": None,
        "deit": None,
    }


def test_a_base_model_has_the_same_sites_without_a_prefix() -> None:
    fields = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "vocab_size": 20}
    model = BertModel(BertConfig(**fields, intermediate_size=INNER))
    assert layer_paths(model) == ["encoder.layer.0", "encoder.layer.1"]
    assert attention_paths(model) == ["encoder.layer.0.attention.self", "encoder.layer.1.attention.self"]
    assert part_paths(model)["pooler"] == "pooler.dense"


@pytest.mark.parametrize("site", sorted(CORE_SITES))
def test_closed_attention_is_refused_with_the_remedy(site: str) -> None:
    with pytest.raises(
        ValueError, match=rf"site '{site}' needs the opened attention: call open_attention\(model\) first"
    ):
        site_paths(tiny_model("bert"), site)


def test_unknown_family_names_the_families() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    model.config.model_type = "mamba"
    with pytest.raises(ValueError, match=r"no table of sites for the model family 'mamba'.*; known: bert, roberta"):
        family(model)
    with pytest.raises(ValueError, match="no table of sites for the model family 'Linear'"):
        family(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (BertForQuestionAnswering(BertConfig(**_SMALL)), "qa_outputs"),
        (BertForSequenceClassification(BertConfig(**_SMALL)), "classifier"),
        (GPT2ForSequenceClassification(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9)), "score"),
        (GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9)), "lm_head"),
    ],
    ids=lambda given: given if isinstance(given, str) else type(given).__name__,
)
def test_head_of_each_kind_of_model(model: nn.Module, head: str) -> None:
    assert part_paths(model)["head"] == head
