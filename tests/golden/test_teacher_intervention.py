"""Teacher Intervention on W2A8 BERT equals an independent dense computation: values, losses and every gradient."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from qat_lightning.distillation.intervention import Intervention
from qat_lightning.distillation.losses.feature_matching import FeatureMatchingLoss, score_mean_squared_error
from qat_lightning.distillation.losses.logits import LogitDistillationLoss
from qat_lightning.models.capture import SignalCapture, Signals
from qat_lightning.models.convert import AttentionQuantization, QuantizationRule, open_attention, quantize
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer
from tests.golden import reference
from tests.tiny_models import PAD, tiny_batch, tiny_model

HEADS = 2
SIZES = {"hidden_size": 16, "num_attention_heads": HEADS, "intermediate_size": 24, "vocab_size": 40}
# Chosen so that no value lies near a decision (see `reference.Margin`); test_no_decision_is_near guards the choice.
SEED = 146

QKV = ("attention.query", "attention.key", "attention.value")
INTERVENTIONS = {
    None: None,
    "O": Intervention(replace=["attention.projection"], detach=QKV),
    "C": Intervention(replace=["attention.context"], detach=QKV),
    "M": Intervention(replace=["attention.probs"], detach=QKV[:2]),
}
MODES = list(INTERVENTIONS)
SITES = {
    "hidden": "hidden",
    "scores": "attention.scores",
    "probs": "attention.probs",
    "context": "attention.context",
    "projection": "attention.projection",
    "output": "attention.output",
    "logits": "logits",
}
LOSSES = {
    "prediction": LogitDistillationLoss(),
    "hidden": FeatureMatchingLoss("hidden", padding="include"),
    "scores": FeatureMatchingLoss("attention.scores", score_mean_squared_error, padding="include"),
    "output": FeatureMatchingLoss("attention.output", padding="include"),
}
REFERENCE_LOSSES = {
    "prediction": reference.prediction_loss,
    "hidden": partial(reference.layer_loss, site="hidden"),
    "scores": reference.score_loss,
    "output": partial(reference.layer_loss, site="output"),
}
# No gradient reaches these in any layer (arXiv:2302.11812, released code; the table in the reference's docstring).
UNTRAINED = {
    None: (),
    "O": ("attention.self.value", "attention.output.dense"),
    "C": ("attention.self.value",),
    "M": (),
}
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.float64: {"rtol": 1e-9, "atol": 1e-9}}


def teacher_model() -> nn.Module:
    return tiny_model("bert", seed=SEED, **SIZES)


def student_model() -> nn.Module:
    """Not the teacher's weights, so that no loss is 0 for a trivial reason."""
    return tiny_model("bert", seed=SEED + 1000, **SIZES)


def w2a8(model: nn.Module) -> nn.Module:
    ternary, eight_bit = TernaryQuantizer, partial(UniformQuantizer, bits=8)
    rules = [
        QuantizationRule("embeddings.word", weight=partial(TernaryQuantizer, granularity="per_channel")),
        QuantizationRule("layers.*", weight=ternary, input=eight_bit),
        QuantizationRule("pooler", weight=ternary, input=eight_bit),
    ]
    return quantize(model, rules, AttentionQuantization(eight_bit, eight_bit, eight_bit, eight_bit))


def text_batch() -> dict[str, Tensor]:
    batch = tiny_batch("bert", seed=SEED, lengths=(6, 4))
    return batch | {"input_ids": batch["input_ids"] % SIZES["vocab_size"]}


def float64_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().double().requires_grad_() for name, value in model.state_dict().items()}


def signals_of_teacher(model: nn.Module, batch: dict[str, Tensor]) -> Signals:
    with torch.no_grad():
        return SignalCapture(open_attention(model), SITES.values())(batch)


def signals_under(mode: str | None, student: nn.Module, teacher: Signals, batch: dict[str, Tensor]) -> Signals:
    intervention = INTERVENTIONS[mode]
    with nullcontext() if intervention is None else intervention.apply(student, teacher):
        return SignalCapture(student, SITES.values())(batch)


def reference_run(mode: str | None) -> tuple[reference.Run, Signals, dict[str, Tensor]]:
    """The student's run, the teacher's signals and the student's float64 parameters."""
    batch, state = text_batch(), float64_state(student_model())
    with torch.no_grad():
        teacher = reference.forward(float64_state(teacher_model()), batch, HEADS, PAD, quantized=False).signals
    return reference.forward(state, batch, HEADS, PAD, True, mode, teacher), teacher, state


def our_run(mode: str | None, dtype: torch.dtype) -> tuple[Signals, Signals, nn.Module]:
    teacher = signals_of_teacher(teacher_model().to(dtype), text_batch())
    student = w2a8(student_model().to(dtype))
    return signals_under(mode, student, teacher, text_batch()), teacher, student


def named_reference_gradients(state: dict[str, Tensor], loss: Tensor) -> dict[str, Tensor | None]:
    loss.backward()
    return {name: value.grad for name, value in state.items()}


def or_zero(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


@pytest.mark.parametrize("mode", MODES)
def test_no_decision_is_near(mode: str | None) -> None:
    """Else float32 may round to another code than float64, and the comparison below would say nothing."""
    margin = reference_run(mode)[0].margin
    assert margin.rounding > 5e-4
    assert margin.threshold > 1e-4
    assert margin.clip > 1e-4


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_every_signal(mode: str | None, dtype: torch.dtype) -> None:
    expected, expected_teacher, _ = reference_run(mode)
    signals, teacher, _ = our_run(mode, dtype)
    for ours, theirs in ((signals, expected.signals), (teacher, expected_teacher)):
        for name, site in SITES.items():
            assert len(ours[site]) == len(theirs[name]), name
            for own, other in zip(ours[site], theirs[name], strict=True):
                # The additive mask is −10000 in the papers and the dtype's smallest number in transformers.
                unmasked = other > reference.MASK / 2
                assert torch.equal(own > reference.MASK / 2, unmasked)
                torch.testing.assert_close(own[unmasked].double(), other[unmasked], **TOLERANCE[dtype], msg=name)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_each_loss(mode: str | None, dtype: torch.dtype) -> None:
    expected, expected_teacher, _ = reference_run(mode)
    signals, teacher, _ = our_run(mode, dtype)
    for name, loss in LOSSES.items():
        theirs = REFERENCE_LOSSES[name](expected.signals, expected_teacher)
        assert theirs > 1e-3, "a loss near 0 compares nothing"
        torch.testing.assert_close(loss(signals, teacher, text_batch()).double(), theirs, **TOLERANCE[dtype])


def test_prediction_loss_as_mean_over_classes() -> None:
    """TernaryBERT and KDLSQ average over classes (arXiv:2009.12812, released code)."""
    expected, expected_teacher, _ = reference_run(None)
    signals, teacher, _ = our_run(None, torch.float64)
    ours = LogitDistillationLoss(classes="mean")(signals, teacher, text_batch())
    theirs = reference.prediction_loss(expected.signals, expected_teacher, over_classes="mean")
    torch.testing.assert_close(ours, theirs, **TOLERANCE[torch.float64])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_every_gradient(mode: str | None, dtype: torch.dtype) -> None:
    expected, expected_teacher, state = reference_run(mode)
    signals, teacher, student = our_run(mode, dtype)
    loss = sum(loss(expected.signals, expected_teacher) for loss in REFERENCE_LOSSES.values())
    theirs = named_reference_gradients(state, loss)
    sum(loss(signals, teacher, text_batch()) for loss in LOSSES.values()).backward()
    ours = {name: parameter.grad for name, parameter in student.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, parameter in student.named_parameters():
        own, other = or_zero(ours[name], parameter).double(), or_zero(theirs[name], state[name])
        torch.testing.assert_close(own, other, **TOLERANCE[dtype], msg=lambda text, at=name: f"{at}: {text}")


@pytest.mark.parametrize("mode", MODES)
def test_who_gets_no_gradient(mode: str | None) -> None:
    signals, teacher, student = our_run(mode, torch.float32)
    sum(loss(signals, teacher, text_batch()) for loss in LOSSES.values()).backward()
    for name, parameter in student.named_parameters():
        untrained = any(part in name for part in UNTRAINED[mode])
        # The key's bias moves every score of a row alike, so softmax gives it no gradient: the score loss does.
        assert bool(or_zero(parameter.grad, parameter).any()) is not untrained, name


@pytest.mark.parametrize("mode", ["O", "C", "M"])
def test_lower_layers_learn_nothing_through_query_and_key(mode: str) -> None:
    """With the score loss alone, whose last layer's scores depend on all lower layers, only W_Q and W_K learn."""
    signals, teacher, student = our_run(mode, torch.float32)
    LOSSES["scores"](signals, teacher, text_batch()).backward()
    trained = {name for name, parameter in student.named_parameters() if or_zero(parameter.grad, parameter).any()}
    assert trained == {
        f"bert.encoder.layer.{layer}.attention.self.{part}.{kind}"
        for layer in range(2)
        for part in ("query", "key")
        for kind in ("weight", "bias")
    }


def test_internal_output_distillation_trains_value_and_projection() -> None:
    """arXiv:2302.11812 Fig. 3b: under TI-O, matching AO before the residual reaches W_V and W_O."""
    signals, teacher, student = our_run("O", torch.float32)
    FeatureMatchingLoss("attention.projection")(signals, teacher, text_batch()).backward()
    for layer in range(2):
        attention = student.get_submodule(f"bert.encoder.layer.{layer}.attention")
        assert attention.get_submodule("self.value").weight.grad.any()
        assert attention.get_submodule("output.dense").weight.grad.any()


@pytest.mark.parametrize("mode", MODES)
def test_full_precision_student_with_the_teachers_weights_returns_the_teachers_logits(mode: str | None) -> None:
    teacher = signals_of_teacher(teacher_model(), text_batch())
    student = open_attention(copy.deepcopy(teacher_model()))
    assert torch.equal(signals_under(mode, student, teacher, text_batch())["logits"][0], teacher["logits"][0])


def logits_after_changing(parts: tuple[str, ...], mode: str | None) -> tuple[Tensor, Tensor]:
    """The quantized student's logits before and after new values for the parts' weights."""
    teacher = signals_of_teacher(teacher_model(), text_batch())
    student = w2a8(student_model())
    with torch.no_grad():
        before = signals_under(mode, student, teacher, text_batch())["logits"][0]
        for name, parameter in student.named_parameters():
            if any(part in name for part in parts):
                parameter.copy_(torch.randn_like(parameter))
        return before, signals_under(mode, student, teacher, text_batch())["logits"][0]


QUERY_AND_KEY = ("self.query", "self.key")


@pytest.mark.parametrize(
    ("mode", "ignored"),
    [
        ("O", (*QUERY_AND_KEY, "self.value", "attention.output.dense")),
        ("C", (*QUERY_AND_KEY, "self.value")),
        ("M", QUERY_AND_KEY),
    ],
)
def test_logits_ignore_what_the_teacher_supplies(mode: str, ignored: tuple[str, ...]) -> None:
    before, after = logits_after_changing(ignored, mode)
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("mode", "used"),
    [("O", "intermediate.dense"), ("C", "attention.output.dense"), ("M", "self.value"), (None, "self.query")],
)
def test_logits_follow_what_the_teacher_does_not_supply(mode: str | None, used: str) -> None:
    before, after = logits_after_changing((used,), mode)
    assert not torch.allclose(before, after)
