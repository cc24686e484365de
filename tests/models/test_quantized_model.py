"""Calibrating, switching parts on and off, and finding what is learned."""

from functools import partial

import pytest
import torch

from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.convert import AttentionQuantization, QuantizationRule, keep_layers, quantize
from qat_lightning.models.module_paths import layer_paths
from qat_lightning.models.quantized_model import cached_weights, calibrate, step_sizes, switch_on
from qat_lightning.models.size import bits, quantized_weights, size
from qat_lightning.quantization.quantizers.base import Quantizer
from qat_lightning.quantization.quantizers.binary import BinaryQuantizer
from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer
from tests.tiny_models import DECODERS, LAYERS, tiny_batch, tiny_model

RULES = [QuantizationRule("layers.*", weight=TernaryQuantizer, input=UniformQuantizer)]
OPERANDS = AttentionQuantization(UniformQuantizer, UniformQuantizer, UniformQuantizer, UniformQuantizer)
LEARNED = [
    QuantizationRule("layers.*", weight=partial(LSQQuantizer, bits=3), input=LSQQuantizer),
    QuantizationRule("embeddings.*", weight=partial(LSQQuantizer, bits=3)),
]


def enabled(model):
    return {name for name, module in model.named_modules() if isinstance(module, Quantizer) and module.enabled}


def test_only_the_feed_forward_layers():
    student = quantize(tiny_model("bert"), RULES, OPERANDS)
    everything = enabled(student)
    switch_on(student, ["layers.*.feedforward.*"])
    assert enabled(student) == {name for name in everything if "intermediate" in name or ".output.dense" in name} - {
        name for name in everything if "attention" in name
    }
    switch_on(student)
    assert enabled(student) == everything


def test_attention_propagation_is_value_projection_and_its_operands():
    """SA-PROP of arXiv:2302.11812: V, P·V and W_O."""
    student = quantize(tiny_model("bert"), RULES, OPERANDS)
    switch_on(student, ["layers.*.attention.value", "layers.*.attention.probs", "layers.*.attention.projection"])
    on = {name.split("layer.0.")[1] for name in enabled(student) if "layer.0." in name}
    assert on == {
        "attention.self.value.weight_quantizer",
        "attention.self.value.input_quantizer",
        "attention.self.core.value_quantizer",
        "attention.self.core.probs_quantizer",
        "attention.output.dense.weight_quantizer",
        "attention.output.dense.input_quantizer",
    }


def test_with_everything_off_the_model_is_in_full_precision():
    batch, student = tiny_batch("bert"), quantize(tiny_model("bert"), RULES, OPERANDS)
    switch_on(student, ["layers.0.feedforward.in"])
    one = SignalCapture(student)(batch)["logits"][0]
    switch_on(student, [])
    torch.testing.assert_close(
        SignalCapture(student)(batch)["logits"][0], SignalCapture(tiny_model("bert"))(batch)["logits"][0]
    )
    assert not torch.allclose(SignalCapture(student)(batch)["logits"][0], one)


def test_a_glob_without_a_quantizer_is_refused():
    with pytest.raises(ValueError, match=r"no quantizer in parts 'pooler': try layers\.\*"):
        switch_on(quantize(tiny_model("bert"), RULES), ["pooler"])


def test_step_sizes_of_weights_and_activations():
    student = quantize(tiny_model("bert"), LEARNED, AttentionQuantization(query=LSQQuantizer))
    found = step_sizes(student)
    # six matrices a layer and three tables; six inputs a layer and one operand
    assert [len(found["weights"]), len(found["activations"])] == [6 * LAYERS + 3, 6 * LAYERS + LAYERS]
    assert step_sizes(tiny_model("bert")) == {"weights": [], "activations": []}


@pytest.mark.parametrize("initialization", ["percentile", "kl", "lsq", "minmax"])
def test_every_threshold_is_measured_positive_and_finite(initialization):
    make = partial(LSQQuantizer, initialization=initialization)
    rules = [
        QuantizationRule("layers.*", weight=make, input=make),
        QuantizationRule("embeddings.*", weight=make),
        QuantizationRule("pooler", weight=make),
    ]
    student = quantize(tiny_model("bert"), rules, AttentionQuantization(make, make, make, make))
    calibrate(student, [tiny_batch("bert", seed) for seed in range(3)])
    learned = [step for steps in step_sizes(student).values() for step in steps]
    assert all(step.isfinite().all() and (step > 0).all() for step in learned)
    assert not any((step == 1.0).all() for step in learned), "1 is where they stand before they are measured"


def test_table_of_bits_and_the_size_that_comes_of_it():
    table = {"layers.0.*": 8, "layers.*.feedforward.out": 4}
    student = quantize(
        tiny_model("bert"), [QuantizationRule("layers.*", weight=LSQQuantizer, input=LSQQuantizer)], None, table
    )
    widths = {name: module.bits for name, module in student.named_modules() if name.endswith("weight_quantizer")}
    assert {width for name, width in widths.items() if "layer.0." in name} == {8}
    assert widths["bert.encoder.layer.1.output.dense.weight_quantizer"] == 4
    assert widths["bert.encoder.layer.1.intermediate.dense.weight_quantizer"] == 8
    assert bits(student)["attention.query"] == 8
    # counted by hand: float32 but for 8 bits in 11 matrices and 4 in one; a scale a matrix and a step an input
    weights = {name: p.numel() for name, p in student.named_parameters() if "encoder" in name and p.dim() == 2}
    four = weights["bert.encoder.layer.1.output.dense.weight"]
    eight = sum(weights.values()) - four
    full = sum(p.numel() for p in tiny_model("bert").parameters())
    assert size(student).float32 == 4 * full
    assert size(student).packed == 4 * (full - eight - four) + eight + four // 2 + 4 * 12 + 4 * 12


def test_table_of_bits_is_refused_in_words():
    with pytest.raises(
        ValueError,
        match=r"names 'layer\.0', to which no part falls that an earlier line has left; parts",
    ):
        quantize(tiny_model("bert"), [QuantizationRule("layers.*", weight=LSQQuantizer)], None, {"layer.0": 4})
    with pytest.raises(ValueError, match="has a width of its own: choose one that takes bits"):
        quantize(tiny_model("bert"), RULES, None, {"layers.*": 4})
    with pytest.raises(ValueError, match="bits=9 is outside the range of LSQQuantizer: choose 2 to 8"):
        quantize(tiny_model("bert"), [QuantizationRule("layers.*", weight=LSQQuantizer)], None, {"layers.*": 9})


@pytest.mark.parametrize("name", ["bert", "distilbert", "vit", *DECODERS])
def test_a_shallower_student_of_some_layers(name):
    student, teacher = keep_layers(tiny_model(name), [1]), tiny_model(name)
    assert len(layer_paths(student)) == student.config.num_hidden_layers == 1
    kept, whole = (model.get_submodule(layer_paths(model)[-1]).state_dict() for model in (student, teacher))
    assert all(torch.equal(kept[key], whole[key]) for key in whole)
    assert SignalCapture(student, ["hidden"])(tiny_batch(name))["hidden"][1].isfinite().all()


@pytest.mark.parametrize("layers", [[], [2], [-1, 0]])
def test_layers_that_are_not_there(layers):
    with pytest.raises(ValueError, match="name at least one of the model's layers, 0 to 1"):
        keep_layers(tiny_model("bert"), layers)


def test_gpt2_output_channels_are_the_rows():
    """Its layers keep their weights transposed."""
    student = quantize(tiny_model("gpt2"), [QuantizationRule("layers.*", weight=BinaryQuantizer)])
    layer = student.get_submodule("transformer.h.0.mlp.c_fc")
    seen = layer.weight_quantizer(layer.quantized_weight)
    torch.testing.assert_close(seen.abs().mean(1), layer.weight.abs().mean(0))
    x = torch.randn(3, layer.weight.shape[0])
    torch.testing.assert_close(layer(x), x @ seen.t() + layer.bias)


def test_learned_steps_of_a_row_need_the_whole_table():
    rule = QuantizationRule(
        "embeddings.word", weight=partial(LSQQuantizer, granularity="per_channel", initialization="minmax")
    )
    student = quantize(tiny_model("bert"), [rule])
    calibrate(student, [tiny_batch("bert")])
    table = student.get_submodule("bert.embeddings.word_embeddings")
    ids = torch.tensor([[3, 5]])
    torch.testing.assert_close(table(ids), table.weight_quantizer(table.weight)[ids])


@pytest.mark.parametrize("rules", [RULES, LEARNED], ids=["ternary", "step_size"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "vit"])
def test_a_validation_quantizes_each_weight_once_to_the_same_answers(family, rules, monkeypatch):
    rules = rules if family == "bert" else rules[:1]
    student, batches = quantize(tiny_model(family), rules).eval(), [tiny_batch(family, seed=seed) for seed in range(3)]
    calibrate(student, batches[:1])
    seen = []
    for kind in (TernaryQuantizer, LSQQuantizer):
        monkeypatch.setattr(kind, "codes", _noting(kind.codes, seen))
    names = list(student.state_dict())
    with torch.no_grad():
        expected = [SignalCapture(student)(batch)["logits"][0] for batch in batches]
        every_time = len(seen)
        seen.clear()
        with cached_weights(student):
            own = [SignalCapture(student)(batch)["logits"][0] for batch in batches]
            assert list(student.state_dict()) == names
    assert all(torch.equal(*both) for both in zip(own, expected, strict=True))
    weights = [quantizer for _, quantizer in quantized_weights(student)]
    assert all(seen.count(quantizer) == 1 for quantizer in weights)
    assert len(seen) < every_time


def _noting(codes, seen):
    def noted(self, x):
        seen.append(self)
        return codes(self, x)

    return noted


def test_a_weight_that_changes_within_a_validation_is_quantized_anew():
    student, batch = quantize(tiny_model("bert"), RULES).eval(), tiny_batch("bert")
    with torch.no_grad(), cached_weights(student):
        before = SignalCapture(student)(batch)["logits"][0]
        for parameter in student.parameters():
            parameter.mul_(1.5)
        after = SignalCapture(student)(batch)["logits"][0]
        assert not torch.equal(after, before)
    with torch.no_grad():
        assert torch.equal(after, SignalCapture(student)(batch)["logits"][0])


def test_an_error_in_a_validation_leaves_a_student_that_learns():
    student, batch = quantize(tiny_model("bert"), LEARNED), tiny_batch("bert")
    calibrate(student, [batch])
    names = list(student.state_dict())
    held = cached_weights(student)
    held.__enter__()  # and nobody leaves it
    assert list(student.state_dict()) == names
    SignalCapture(student.train())(batch)["logits"][0].sum().backward()
    learned = [
        parameter for name, parameter in student.named_parameters() if name.endswith("weight_quantizer.step_size")
    ]
    assert learned
    assert all(parameter.grad is not None for parameter in learned)
    held.__exit__(None, None, None)
