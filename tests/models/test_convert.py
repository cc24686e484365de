"""Surgery: what is quantized is what the rules say, and nothing else changes."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.convert import (
    AttentionQuantization,
    QuantizationRule,
    open_attention,
    open_attention_for,
    quantize,
)
from qat_lightning.models.module_paths import part_paths
from qat_lightning.models.quantized_model import calibrate
from qat_lightning.quantization.modules.attention import IMPLEMENTATION, InstrumentedAttention
from qat_lightning.quantization.modules.layers import QuantEmbedding, QuantLinear
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer
from tests.tiny_models import FAMILIES, LAYERS, tiny_batch, tiny_model, without_labels

EIGHT_BIT = partial(UniformQuantizer, bits=8)
STATIC = partial(UniformQuantizer, bits=8, scale="static")
BY_ROW = partial(TernaryQuantizer, granularity="per_channel")
LINEAR = QuantizationRule("layers.*", weight=TernaryQuantizer, input=EIGHT_BIT)
# What the papers quantize (arXiv:2009.12812, released code); image models have neither words nor a pooler.
W2A8 = [
    QuantizationRule("embeddings.word", weight=BY_ROW, optional=True),
    LINEAR,
    QuantizationRule("pooler", weight=TernaryQuantizer, input=EIGHT_BIT, optional=True),
]
OPERANDS = AttentionQuantization(EIGHT_BIT, EIGHT_BIT, EIGHT_BIT, EIGHT_BIT)


def module_at(model: nn.Module, part: str) -> nn.Module:
    return model.get_submodule(part_paths(model)[part])


def operands(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """The two factors of every linear layer as the model multiplies them: path → (input, weight)."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(path: str, module: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        x, weight = inputs[0], module.weight
        if isinstance(module, QuantLinear):
            x, weight = module.input_quantizer(x), module.weight_quantizer(weight)
        seen[path] = (x.detach(), weight.detach())

    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda module, inputs, path=path: keep(path, module, inputs))
    model(**without_labels(tiny_batch("bert")))
    return seen


def test_coverage_of_bert() -> None:
    """Which tensors are ternary, which are 8 bit and which stay: arXiv:2009.12812, released code."""
    plain = tiny_model("bert")
    model = quantize(copy.deepcopy(plain), W2A8, OPERANDS)
    parts, used = part_paths(model), operands(model)
    layer_parts = ["attention.query", "attention.key", "attention.value", "attention.projection"]
    layer_parts += ["feedforward.in", "feedforward.out"]
    quantized = [f"layers.{layer}.{part}" for layer in range(LAYERS) for part in layer_parts] + ["pooler"]
    for part in quantized:
        x, weight = used[parts[part]]
        assert len(weight.unique()) <= 3, part
        assert torch.equal(weight.unique(), -weight.unique().flip(0)), part
        assert len(x.unique()) <= 255, part
        assert not torch.equal(weight, plain.get_parameter(f"{parts[part]}.weight")), part

    word = module_at(model, "embeddings.word")
    rows = word(torch.arange(word.num_embeddings))
    assert all(len(row.unique()) <= 3 for row in rows)
    assert len(rows.abs().unique()) > 4, "each row has its own scale"

    untouched = {parts[name] for name in ("head", "embeddings.position", "embeddings.token_type")}
    for path, module in model.named_modules():
        is_quantized = isinstance(module, (QuantLinear, QuantEmbedding))
        assert is_quantized is (path in {parts[name] for name in [*quantized, "embeddings.word"]}), path
        if path in untouched or isinstance(module, nn.LayerNorm):
            assert type(module) in (nn.Linear, nn.Embedding, nn.LayerNorm), path
    x, weight = used[parts["head"]]
    assert torch.equal(weight, plain.classifier.weight)
    cores = [module for module in model.modules() if isinstance(module, InstrumentedAttention)]
    assert len(cores) == LAYERS
    for core in cores:
        slots = [core.query_quantizer, core.key_quantizer, core.probs_quantizer, core.value_quantizer]
        assert all(isinstance(slot, UniformQuantizer) and slot.bits == 8 for slot in slots)
        assert len({id(slot) for slot in slots}) == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_quantized_and_trains(family: str) -> None:
    model = tiny_model(family)
    plain = model(**without_labels(tiny_batch(family))).logits
    quantized = quantize(model, W2A8, OPERANDS)
    assert quantized is model
    logits = quantized(**without_labels(tiny_batch(family))).logits
    assert logits.isfinite().all()
    assert not torch.equal(logits, plain)
    logits.square().sum().backward()
    for path, module in model.named_modules():
        if isinstance(module, (QuantLinear, QuantEmbedding)):
            assert module.weight.grad.any(), path


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_objects_of_the_parameters_stay(family: str) -> None:
    model = tiny_model(family)
    keys = list(model.state_dict())
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    quantize(model, W2A8, OPERANDS)
    assert list(model.state_dict()) == keys
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters


def test_weights_load_across_the_surgery() -> None:
    """A full-precision checkpoint fits the quantized model, and the other way round."""
    source, quantized = tiny_model("bert", seed=1), quantize(tiny_model("bert", seed=2), W2A8, OPERANDS)
    quantized.load_state_dict(source.state_dict())
    expected = quantize(copy.deepcopy(source), W2A8, OPERANDS)(**without_labels(tiny_batch("bert"))).logits
    assert torch.equal(quantized(**without_labels(tiny_batch("bert"))).logits, expected)
    back = tiny_model("bert", seed=3)
    back.load_state_dict(quantized.state_dict())
    assert all(torch.equal(*pair) for pair in zip(back.parameters(), source.parameters(), strict=True))


def test_first_matching_rule_wins() -> None:
    rules = [
        QuantizationRule("layers.0.attention.query", weight=partial(UniformQuantizer, bits=4)),
        QuantizationRule("layers.1.*"),
        QuantizationRule("layers.*", weight=TernaryQuantizer),
    ]
    model = quantize(tiny_model("bert"), rules)
    assert module_at(model, "layers.0.attention.query").weight_quantizer.bits == 4
    assert isinstance(module_at(model, "layers.0.attention.key").weight_quantizer, TernaryQuantizer)
    assert type(module_at(model, "layers.1.attention.key")) is nn.Linear


def test_a_rule_that_matches_nothing_names_the_parts() -> None:
    message = r"target_modules='layers\.\*\.ffn' matches no part of Bert.*; parts: .*layers\.\*\.feedforward\.in"
    model = tiny_model("bert")
    with pytest.raises(ValueError, match=message):
        quantize(model, [LINEAR, QuantizationRule("layers.*.ffn", weight=TernaryQuantizer)])
    assert not any(isinstance(module, QuantLinear) for module in model.modules()), "nothing is changed before the check"


def test_an_embedding_has_no_input_to_quantize() -> None:
    message = "part 'embeddings.word' is a Embedding: weights and inputs of linear layers"
    with pytest.raises(ValueError, match=message):
        quantize(tiny_model("bert"), [QuantizationRule("embeddings.word", weight=BY_ROW, input=EIGHT_BIT)])


def test_attention_is_opened_only_for_its_sites() -> None:
    assert open_attention_for(tiny_model("bert"), ["hidden", "logits"]).config._attn_implementation == "sdpa"
    opened = open_attention_for(tiny_model("bert"), ["hidden", "attention.context"])
    assert opened.config._attn_implementation == IMPLEMENTATION


def test_an_attention_rule_may_leave_operands() -> None:
    model = quantize(tiny_model("bert"), [], AttentionQuantization(probs=EIGHT_BIT))
    core = next(module for module in model.modules() if isinstance(module, InstrumentedAttention))
    assert isinstance(core.probs_quantizer, UniformQuantizer)
    assert isinstance(core.query_quantizer, nn.Identity)


def test_a_model_that_does_not_route_is_refused() -> None:
    model = tiny_model("bert")
    model.set_attn_implementation = lambda name: None
    with pytest.raises(
        ValueError, match="BertForSequenceClassification does not route through transformers' attention"
    ):
        open_attention(model)


def static_model() -> nn.Module:
    rules = [QuantizationRule("layers.*", weight=TernaryQuantizer, input=STATIC)]
    return quantize(tiny_model("bert"), rules, AttentionQuantization(STATIC, STATIC, STATIC, STATIC))


def test_calibration_reaches_every_static_quantizer_in_order() -> None:
    model, batch = static_model(), tiny_batch("bert")
    seen: dict[str, Tensor] = {}
    static = {name: module for name, module in model.named_modules() if getattr(module, "static", False)}
    assert len(static) == LAYERS * (6 + 4)
    calibrate(model.train(), [batch])
    assert model.training
    assert {module.training for module in model.modules()} == {True}
    model.eval()
    for name, module in static.items():
        module.register_forward_pre_hook(lambda module, inputs, name=name: seen.update({name: inputs[0].abs().max()}))
    SignalCapture(model)(batch)
    # Equal to what passes now only if each was calibrated with the earlier ones already on.
    for name, module in static.items():
        assert module.maximum == seen[name].clamp(max=2.5), name


def test_calibration_joins_batches_and_leaves_no_hook() -> None:
    one, both = static_model(), static_model()
    small, large = tiny_batch("bert", seed=1), tiny_batch("bert", seed=2)
    calibrate(one, [small])
    calibrate(both, [small, large])
    maxima = [
        [module.maximum for module in model.modules() if getattr(module, "static", False)] for model in (one, both)
    ]
    assert all(second >= first for first, second in zip(*maxima, strict=True))
    assert any(second > first for first, second in zip(*maxima, strict=True))
    assert not any(module._forward_pre_hooks for module in both.modules())
    assert all(parameter.grad is None for parameter in both.parameters())


def test_static_scales_make_a_sample_independent_of_its_batch() -> None:
    """With the papers' dynamic scales it is not (arXiv:2009.12812, released code: one scale for the batch)."""
    batch = without_labels(tiny_batch("bert"))
    alone = {name: value[:1] for name, value in batch.items()}
    static, dynamic = static_model(), quantize(tiny_model("bert"), [LINEAR], OPERANDS)
    calibrate(static, [batch])
    torch.testing.assert_close(static(**batch).logits[:1], static(**alone).logits)
    assert not torch.allclose(dynamic(**batch).logits[:1], dynamic(**alone).logits, atol=1e-3)
