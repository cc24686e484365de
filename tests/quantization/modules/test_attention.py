"""The opened attention is transformers' eager attention, bit for bit, and drops nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qat_lightning.models.convert import open_attention
from qat_lightning.quantization.modules.attention import (
    IMPLEMENTATION,
    InstrumentedAttention,
    attend,
)
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer
from tests.tiny_models import FAMILIES, TEXT_FAMILIES, tiny_batch, tiny_model, without_labels

DECODERS: dict[str, dict[str, object]] = {
    "gpt2": {},
    "llama": {},
    "mistral": {"sliding_window": 3},  # shorter than the text: the mask must say it, as the core ignores the keyword
    "qwen2": {},
}


def pair(family: str, **changes: object) -> tuple[PreTrainedModel, PreTrainedModel]:
    eager = tiny_model(family, **changes)
    eager.set_attn_implementation("eager")
    return eager, open_attention(copy.deepcopy(eager))


def probabilities(model: PreTrainedModel, batch: dict[str, Tensor]) -> list[Tensor]:
    seen: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, InstrumentedAttention):
            module.probs.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        model(**batch)
    return seen


@pytest.mark.parametrize("family", [*FAMILIES, *DECODERS])
def test_logits_equal_eager_bit_for_bit(family: str) -> None:
    eager, opened = pair(family, **DECODERS.get(family, {}))
    assert opened.config._attn_implementation == IMPLEMENTATION
    batch = without_labels(tiny_batch(family))
    assert torch.equal(opened(**batch).logits, eager(**batch).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_equals_eager_bit_for_bit(family: str) -> None:
    """Dropout is drawn in the same order, and the gradients agree."""
    gradients = []
    for model in pair(family):
        model.train()
        torch.manual_seed(1)
        model(**without_labels(tiny_batch(family))).logits.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None)
        assert gradient is None or torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_generates_what_eager_generates(name: str) -> None:
    """With a cache, queries are fewer than keys."""
    prompt, tokens = tiny_batch(name)["input_ids"][:1, :4], []
    for model in pair(name, **DECODERS[name]):
        tokens.append(model.generate(prompt, max_new_tokens=5, do_sample=False, pad_token_id=1, use_cache=True))
    assert tokens[0].shape == (1, 9)
    assert torch.equal(*tokens)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_padding_gets_no_probability(family: str) -> None:
    """Without a registered mask function 36 % of it went to padding (the design's first trap)."""
    _, opened = pair(family)
    batch = without_labels(tiny_batch(family))
    padding = ~batch["attention_mask"].bool()
    assert padding.any()
    seen = probabilities(opened, batch)
    assert len(seen) == 2
    for probs in seen:
        assert not probs.transpose(1, 3)[padding].any()
        torch.testing.assert_close(probs.sum(-1), torch.ones_like(probs.sum(-1)))


def attention_inputs(heads: int = 4, groups: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, heads, 5, 8), torch.randn(2, groups, 6, 8), torch.randn(2, groups, 6, 8)


def test_core_by_its_formula() -> None:
    query, key, value = (tensor.double() for tensor in attention_inputs())
    mask = torch.where(torch.rand(2, 1, 5, 6) < 0.3, -1e9, 0.0).double()
    context, probs = InstrumentedAttention().eval()(query, key, value, mask, 0.25, 0.1)
    expected = torch.softmax(torch.einsum("bhnd,bhmd->bhnm", query, key) * 0.25 + mask, -1)
    torch.testing.assert_close(probs, expected)
    torch.testing.assert_close(context, torch.einsum("bhnm,bhmd->bnhd", expected, value))
    assert context.is_contiguous()


def test_grouped_keys_serve_consecutive_heads() -> None:
    query, key, value = attention_inputs(heads=4, groups=2)
    core = InstrumentedAttention().eval()
    grouped, _ = core(query, key, value, None, 0.25, 0.0)
    head_to_group = [0, 0, 1, 1]
    expected, _ = core(query, key[:, head_to_group], value[:, head_to_group], None, 0.25, 0.0)
    assert torch.equal(grouped, expected)


def test_every_port_passes_its_tensor() -> None:
    query, key, value = attention_inputs()
    core, seen = InstrumentedAttention().eval(), {}
    ports = ("query", "key", "value", "scores", "probs", "context")
    for port in ports:
        core.get_submodule(port).register_forward_hook(
            lambda module, inputs, output, port=port: seen.update({port: output})
        )
    mask = torch.zeros(2, 1, 5, 6)
    mask[..., -1] = -1e9
    context, probs = core(query, key, value, mask, 0.25, 0.0)
    assert seen.keys() == set(ports)
    for port, tensor in (("query", query), ("key", key), ("value", value), ("probs", probs)):
        assert torch.equal(seen[port], tensor), port
    torch.testing.assert_close(seen["scores"], query @ key.transpose(2, 3) * 0.25 + mask)
    assert torch.equal(seen["context"].transpose(1, 2), context)


def test_a_port_replaces_what_follows() -> None:
    query, key, value = attention_inputs()
    core, instead = InstrumentedAttention().eval(), torch.softmax(torch.randn(2, 4, 5, 6), -1)
    core.probs.register_forward_hook(lambda module, inputs, output: instead)
    context, _ = core(query, key, value, None, 0.25, 0.0)
    torch.testing.assert_close(context, (instead @ value).transpose(1, 2))


@pytest.mark.parametrize("slot", InstrumentedAttention.QUANTIZED)
def test_each_quantizer_takes_its_own_operand(slot: str) -> None:
    """arXiv:2009.12812, released code: q and k before q kᵀ, v and the probabilities before their product."""
    query, key, value = attention_inputs()
    core, seen, plain = InstrumentedAttention().eval(), [], InstrumentedAttention().eval()
    quantizer = UniformQuantizer(bits=2)
    quantizer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    core.add_module(f"{slot}_quantizer", quantizer)
    context, probs = core(query, key, value, None, 0.25, 0.0)
    expected = {"query": query, "key": key, "value": value, "probs": probs}
    assert len(seen) == 1
    assert torch.equal(seen[0], expected[slot])
    expected[slot] = quantizer(expected[slot])
    if slot in ("query", "key"):
        expected["probs"] = torch.softmax(expected["query"] @ expected["key"].transpose(2, 3) * 0.25, -1)
    torch.testing.assert_close(context, (expected["probs"] @ expected["value"]).transpose(1, 2))
    assert not torch.equal(context, plain(query, key, value, None, 0.25, 0.0)[0])


def test_probabilities_are_quantized_after_dropout_and_returned_before() -> None:
    query, key, value = attention_inputs()
    core, seen = InstrumentedAttention(), []
    core.probs_quantizer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    _, probs = core(query, key, value, None, 0.25, 0.5)
    dropped = seen[0] == 0
    assert dropped.any()
    assert (probs > 0).all()
    torch.testing.assert_close(seen[0][~dropped], 2 * probs[~dropped])


@pytest.mark.parametrize("keyword", ["softcap", "s_aux", "position_bias"])
def test_unknown_keyword_is_refused(keyword: str) -> None:
    attention = nn.Module()
    attention.core = InstrumentedAttention()
    with pytest.raises(ValueError, match=keyword):
        attend(attention, *attention_inputs(), None, **{keyword: 30.0})
