"""Observing returns what transformers itself reports, and leaves no trace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qat_lightning.distillation.intervention import Intervention
from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.convert import open_attention
from qat_lightning.models.sites import AXES
from tests.tiny_models import FAMILIES, LAYERS, tiny_batch, tiny_model, without_labels


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_signals_equal_transformers_own(family: str) -> None:
    eager, batch = tiny_model(family), tiny_batch(family)
    eager.set_attn_implementation("eager")
    expected = eager(**without_labels(batch), output_hidden_states=True, output_attentions=True)
    signals = SignalCapture(open_attention(copy.deepcopy(eager)), ["hidden", "attention.probs"])(batch)
    assert len(signals["hidden"]) == len(expected.hidden_states) == LAYERS + 1
    assert len(signals["attention.probs"]) == len(expected.attentions) == LAYERS
    assert all(torch.equal(*pair) for pair in zip(signals["hidden"], expected.hidden_states, strict=True))
    assert all(torch.equal(*pair) for pair in zip(signals["attention.probs"], expected.attentions, strict=True))
    assert torch.equal(signals["logits"][0], expected.logits)


def test_sites_outside_the_core_leave_attention_on_its_fast_path() -> None:
    model = tiny_model("bert")
    SignalCapture(model, ["hidden", "attention.output", "attention.projection"])(tiny_batch("bert"))
    assert model.config._attn_implementation == "sdpa"


def test_gradient_flows_from_signals_into_the_model() -> None:
    model = tiny_model("bert")
    SignalCapture(model, ["hidden"])(tiny_batch("bert"))["hidden"][1].sum().backward()
    assert model.bert.embeddings.word_embeddings.weight.grad.any()
    assert model.classifier.weight.grad is None


def test_hooks_are_gone_after_an_exception() -> None:
    model = open_attention(tiny_model("bert"))
    before = hooks_of(model)
    batch = tiny_batch("bert")
    with pytest.raises(IndexError):
        SignalCapture(model, AXES)(batch | {"input_ids": batch["input_ids"] + 10_000})
    assert hooks_of(model) == before
    signals = SignalCapture(model, AXES)(batch)
    assert len(signals["hidden"]) == LAYERS + 1


def test_a_deep_copy_of_an_observed_model_is_independent() -> None:
    """A copy made after hooking would keep the old closures (the design's eighth trap)."""
    model, batch = open_attention(tiny_model("bert")), tiny_batch("bert")
    observe = SignalCapture(model, ["hidden", "attention.probs"])
    before = observe(batch)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    of_other = SignalCapture(other, ["hidden", "attention.probs"])(batch)
    after = observe(batch)
    for site in ("hidden", "attention.probs"):
        assert len(of_other[site]) == len(after[site]) == len(before[site])
        assert all(torch.equal(*pair) for pair in zip(before[site], after[site], strict=True))
        assert not torch.equal(of_other[site][0], after[site][0])


def test_labels_never_reach_the_model() -> None:
    model, batch = tiny_model("bert"), tiny_batch("bert")
    seen = []
    model.register_forward_pre_hook(lambda module, inputs, keywords: seen.append(set(keywords)), with_kwargs=True)
    SignalCapture(model)(batch | {"sentence": torch.zeros(1)})
    assert seen == [{"input_ids", "attention_mask"}]


def test_a_replaced_signal_is_returned_as_the_model_made_it() -> None:
    model, batch = open_attention(tiny_model("bert")), tiny_batch("bert")
    observe = SignalCapture(model, ["attention.probs", "attention.context"])
    own = observe(batch)
    other = SignalCapture(open_attention(tiny_model("bert", seed=1)), ["attention.probs"])(batch)
    with Intervention(["attention.probs"]).apply(model, other):
        under = observe(batch)
    assert torch.equal(under["attention.probs"][0], own["attention.probs"][0])
    assert not torch.equal(under["attention.context"][0], own["attention.context"][0])


def test_unknown_and_missing_sites_are_refused_before_the_first_batch() -> None:
    with pytest.raises(ValueError, match=r"unknown site 'hiden'; sites: .*hidden"):
        SignalCapture(tiny_model("bert"), ["hiden"])
    with pytest.raises(ValueError, match=r"call open_attention\(model\) first"):
        SignalCapture(tiny_model("bert"), ["attention.scores"])
