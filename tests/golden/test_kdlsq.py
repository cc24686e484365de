"""KDLSQ-BERT (arXiv:2101.05938) equals an independent dense computation: calibration, losses and every gradient."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qat_lightning.config.instantiate import create, create_all
from qat_lightning.distillation.losses.feature_matching import FeatureMatchingLoss, score_mean_squared_error
from qat_lightning.distillation.losses.logits import LogitDistillationLoss, TaskLoss
from qat_lightning.models.capture import SignalCapture, Signals
from qat_lightning.models.convert import AttentionQuantization, QuantizationRule, open_attention, quantize
from qat_lightning.models.quantized_model import calibrate
from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from tests.golden import kdlsq as reference
from tests.golden.dense_bert import Bert
from tests.tiny_models import PAD, tiny_batch, tiny_model
from tests.training.runs import composed

HEADS, LENGTHS = 2, (6, 4)
SIZES = {"hidden_size": 16, "num_attention_heads": HEADS, "intermediate_size": 24, "vocab_size": 40}
# Chosen so that no value lies near a decision (see `reference.Thresholds`); test_no_decision_is_near guards the choice.
SEED = 163
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.float64: {"rtol": 1e-9, "atol": 1e-9}}
both_types = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
REDUCTIONS = {"include": None, "ignore": LENGTHS}
every_reduction = pytest.mark.parametrize("padding", REDUCTIONS)

# Of one layer: six matrices and their inputs, four operands; then the pooler's two, and two embedding tables.
PLACES = 2 * (6 * 2 + 4) + 2 + 2


def model(seed: int, dtype: torch.dtype) -> nn.Module:
    return tiny_model("bert", seed=seed, **SIZES).to(dtype)


def text_batch() -> dict[str, Tensor]:
    batch = tiny_batch("bert", seed=SEED, lengths=LENGTHS)
    return batch | {"input_ids": batch["input_ids"] % SIZES["vocab_size"]}


def by_hand(bits: int) -> tuple[list[QuantizationRule], AttentionQuantization]:
    """The coverage of arXiv:2101.05938, released code."""
    weight = partial(LSQQuantizer, bits=bits, clip_gradient=False)
    activation = partial(LSQQuantizer, bits=8, clip_gradient=True)
    rules = [
        QuantizationRule("embeddings.word", weight=weight),
        QuantizationRule("embeddings.position", weight=weight),
        QuantizationRule("layers.*", weight=weight, input=activation),
        QuantizationRule("pooler", weight=weight, input=activation),
    ]
    return rules, AttentionQuantization(activation, activation, activation, activation)


@cache
def configuration(*words: str) -> dict[str, Any]:
    """Composed once; not to be changed."""
    return composed(*words)


def by_configuration(bits: int) -> tuple[list[QuantizationRule], AttentionQuantization]:
    chosen = configuration(
        "quantization=lsq_w2a8",
        f"quantization.weight.bits={bits}",
        "quantization.activation.initialization=percentile",
        "losses=kdlsq",
    ).quantization
    rules = list(create_all(chosen.rules, "quantization.rules").values())
    return rules, create(chosen.attention, "quantization.attention")


SOURCES = {"by hand": by_hand, "by configuration": by_configuration}
every_source = pytest.mark.parametrize("source", SOURCES)


def configured_losses(padding: str, name: str = "kdlsq") -> dict[str, Any]:
    nodes = copy.deepcopy(configuration("quantization=lsq_w2a8", f"losses={name}").losses)
    for name in ("hidden", "scores"):
        nodes[name]["padding"] = padding
    return create_all(nodes, "losses")


def losses_by_hand(padding: str) -> dict[str, Any]:
    return {
        "logits": LogitDistillationLoss(classes="mean"),
        "hidden": FeatureMatchingLoss("hidden", padding=padding),
        "scores": FeatureMatchingLoss("attention.scores", score_mean_squared_error, padding=padding),
    }


# --- the dense computation ------------------------------------------------------------------------------------------


def float64_state(seed: int) -> dict[str, Tensor]:
    state = model(seed, torch.float32).state_dict()
    return {name: value.detach().double().requires_grad_() for name, value in state.items()}


def dense_teacher() -> Signals:
    with torch.no_grad():
        return Bert(float64_state(SEED), HEADS, PAD)(text_batch())


@cache
def measured(bits: int) -> Mapping[str, float]:
    """Each place's α by percentile, of what passes there on the batch, earlier places being quantized already."""
    thresholds = reference.Thresholds(bits)
    Bert(float64_state(SEED + 1000), HEADS, PAD, thresholds)(text_batch())
    return {place: alpha.item() for place, alpha in thresholds.alphas.items()}


def alphas(bits: int) -> dict[str, float]:
    """Moved off the values that they were taken from, some up, some down, to numbers that float32 holds."""
    moved = (alpha * (1 + 0.2 * math.sin(index + 1)) for index, alpha in enumerate(measured(bits).values()))
    return dict(zip(measured(bits), torch.tensor(list(moved)).tolist(), strict=True))


def dense_student(bits: int) -> tuple[Signals, dict[str, Tensor], reference.Thresholds]:
    """Signals, all parameters (the thresholds among them, named as the quantized model names them), and margins."""
    given = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in alphas(bits).items()}
    state, thresholds = float64_state(SEED + 1000), reference.Thresholds(bits, given)
    signals = Bert(state, HEADS, PAD, thresholds)(text_batch())
    return signals, state | {f"{place}.step_size": alpha for place, alpha in given.items()}, thresholds


# --- ours -----------------------------------------------------------------------------------------------------------


def teacher_signals(dtype: torch.dtype) -> Signals:
    with torch.no_grad():
        return SignalCapture(open_attention(model(SEED, dtype)), ("hidden", "attention.scores"))(text_batch())


def calibrated_student(source: str, bits: int, dtype: torch.dtype) -> nn.Module:
    student = quantize(model(SEED + 1000, dtype), *SOURCES[source](bits)).to(dtype)
    calibrate(student, [text_batch()])
    return student.to(dtype)


def our_student(source: str, bits: int, dtype: torch.dtype) -> tuple[Signals, nn.Module]:
    student = calibrated_student(source, bits, dtype)
    with torch.no_grad():
        for place, alpha in alphas(bits).items():
            student.get_parameter(f"{place}.step_size").fill_(alpha)
    return SignalCapture(student, ("hidden", "attention.scores"))(text_batch()), student


def compare_gradients(student: nn.Module, parameters: dict[str, Tensor], dtype: torch.dtype) -> None:
    ours = dict(student.named_parameters())
    assert ours.keys() == parameters.keys()
    for name, parameter in ours.items():
        own, other = (torch.zeros_like(p) if p.grad is None else p.grad for p in (parameter, parameters[name]))
        torch.testing.assert_close(
            own.double(), other, **TOLERANCE[dtype], msg=lambda text, name=name: f"{name}: {text}"
        )


# --- the reference itself -------------------------------------------------------------------------------------------


def test_thresholds_by_hand() -> None:
    """α = 2, 3 bits: 0.9 ↦ 2/3, 5 ↦ 2; g_α = (2/3 − 0.9)/2 + 1; the input's gradient stops beyond α, or does not."""
    for clip_gradient, of_input in ((True, [1.0, 0.0]), (False, [1.0, 1.0])):
        x = torch.tensor([0.9, 5.0], dtype=torch.float64, requires_grad=True)
        alpha = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        output = reference.quantized(x, alpha, 3, clip_gradient)
        output.sum().backward()
        torch.testing.assert_close(output.detach(), torch.tensor([2 / 3, 2.0], dtype=torch.float64))
        assert x.grad.tolist() == of_input
        assert alpha.grad.item() == pytest.approx((2 / 3 - 0.9) / 2 + 1)


def test_full_precision_equals_transformers() -> None:
    with torch.no_grad():
        theirs = model(SEED, torch.float64)(**{k: v for k, v in text_batch().items() if k != "labels"}).logits
    torch.testing.assert_close(dense_teacher()["logits"][0], theirs, rtol=1e-9, atol=1e-9)


def test_no_decision_is_near() -> None:
    """Else float32 may take another code than float64, and the comparison below would say nothing."""
    thresholds = dense_student(2)[2]
    assert len(thresholds.alphas) == PLACES
    assert thresholds.rounding > 3e-4
    assert thresholds.clip > 1e-5


# --- ours against it ------------------------------------------------------------------------------------------------


@every_source
@pytest.mark.parametrize("bits", [2, 4])
def test_calibration(bits: int, source: str) -> None:
    """Acceptance C3: every α set, by percentile, layer by layer; nothing but these places has one."""
    student = calibrated_student(source, bits, torch.float64)
    ours = {name: value.item() for name, value in student.named_parameters() if name.endswith(".step_size")}
    assert ours == pytest.approx({f"{place}.step_size": alpha for place, alpha in measured(bits).items()}, rel=1e-9)


@every_source
@every_reduction
@pytest.mark.parametrize(("bits", "dtype"), [(2, torch.float32), (2, torch.float64), (4, torch.float64)], ids=str)
def test_total_loss_and_every_gradient(bits: int, padding: str, dtype: torch.dtype, source: str) -> None:
    """L_pred + Σ MSE(X_l) + Σ MSE(AS_l), all weights 1: of weights, biases, LayerNorms and thresholds."""
    signals, student = our_student(source, bits, dtype)
    losses = losses_by_hand(padding) if source == "by hand" else configured_losses(padding)
    ours = sum(loss.weight * loss(signals, teacher_signals(dtype), text_batch()) for loss in losses.values())
    dense, parameters, _ = dense_student(bits)
    terms = reference.losses(dense, dense_teacher(), text_batch()["labels"], REDUCTIONS[padding])
    theirs = terms["logits"] + terms["hidden"] + terms["scores"]
    torch.testing.assert_close(ours.double(), theirs, **TOLERANCE[dtype])
    ours.backward()
    theirs.backward()
    compare_gradients(student, parameters, dtype)
    trained = [name for name, value in parameters.items() if name.endswith(".step_size") and value.grad.abs() > 1e-4]
    assert len(trained) > 0.9 * PLACES, "thresholds without a gradient compare nothing"


@both_types
@every_reduction
def test_each_term(padding: str, dtype: torch.dtype) -> None:
    signals, teacher = our_student("by hand", 2, dtype)[0], teacher_signals(dtype)
    theirs = reference.losses(dense_student(2)[0], dense_teacher(), text_batch()["labels"], REDUCTIONS[padding])
    for name, loss in (losses_by_hand(padding) | {"task": TaskLoss()}).items():
        assert theirs[name] > 1e-3, "a loss near 0 compares nothing"
        torch.testing.assert_close(loss(signals, teacher, text_batch()).double(), theirs[name], **TOLERANCE[dtype])


@every_source
@both_types
def test_with_the_ground_truth(dtype: torch.dtype, source: str) -> None:
    """`new_kd` of the release adds the cross-entropy with weight 1."""
    signals, student = our_student(source, 2, dtype)
    losses = losses_by_hand("include") | {"task": TaskLoss()}
    if source == "by configuration":
        losses = configured_losses("include", "kdlsq_task")
    ours = sum(loss.weight * loss(signals, teacher_signals(dtype), text_batch()) for loss in losses.values())
    dense, parameters, _ = dense_student(2)
    theirs = sum(reference.losses(dense, dense_teacher(), text_batch()["labels"], None).values())
    torch.testing.assert_close(ours.double(), theirs, **TOLERANCE[dtype])
    ours.backward()
    theirs.backward()
    compare_gradients(student, parameters, dtype)
