"""KD-QAT's losses and signals equal an independent dense computation: values and gradients (arXiv:2211.11014 §4)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from qat_lightning.config.instantiate import create_all
from qat_lightning.distillation.losses.attention_map import AttentionMapLoss
from qat_lightning.distillation.losses.feature_matching import FeatureMatchingLoss
from qat_lightning.distillation.losses.logits import LogitDistillationLoss
from qat_lightning.distillation.losses.weighted_pair import WeightedPairLoss
from qat_lightning.models.capture import SignalCapture, Signals
from qat_lightning.models.convert import open_attention
from tests.golden import kdqat as reference
from tests.golden import test_teacher_intervention as w2a8
from tests.golden.dense_bert import Bert
from tests.tiny_models import CLASSES, HEADS, LAYERS, LENGTHS, PAD, tiny_batch, tiny_model
from tests.training.runs import composed

TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.float64: {"rtol": 1e-9, "atol": 1e-9}}
both_types = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
TOKENS = max(LENGTHS)
BATCH = tiny_batch("bert")

# site → the dense computation's name for it, and the axes of the signal that run over tokens
PLACES = {
    "attention.output": ("output", (1,)),
    "attention.residual": ("residual", (1,)),
    "attention.projection": ("projection", (1,)),
    "attention.context": ("context", (2,)),
    "hidden": ("hidden", (1,)),
    "attention.probs": ("probs", (2, 3)),
}
every_place = pytest.mark.parametrize("site", PLACES)


def dense(seed: int) -> Signals:
    state = {name: value.double() for name, value in tiny_model("bert", seed=seed).state_dict().items()}
    return Bert(state, HEADS, PAD)(BATCH)


def observed(seed: int, dtype: torch.dtype) -> Signals:
    model = open_attention(tiny_model("bert", seed=seed).to(dtype))
    with torch.no_grad():
        return SignalCapture(model, PLACES)(BATCH)


def drawn(site: str, seed: int, layers: int, dtype: torch.dtype) -> Signals:
    """Free numbers in the shape of the site; rows of probabilities sum to 1 over the valid keys, some nearly 0."""
    generator = torch.Generator().manual_seed(seed)
    if site != "attention.probs":
        shape = {"attention.context": (3, HEADS, TOKENS, 8)}.get(site, (3, TOKENS, 32))
        return {site: [torch.randn(shape, generator=generator).to(dtype) for _ in range(layers)]}
    keys = BATCH["attention_mask"].bool()[:, None, None, :]
    scores = [8 * torch.randn(3, HEADS, TOKENS, TOKENS, generator=generator) for _ in range(layers)]
    return {site: [score.double().masked_fill(~keys, -1e4).softmax(-1).to(dtype) for score in scores]}


def compared(ours: Tensor, theirs: Tensor, inputs: list[Tensor], references: list[Tensor], dtype: torch.dtype) -> None:
    """The values, and the gradient of each input."""
    assert theirs > 1e-3, "a loss near 0 compares nothing"
    torch.testing.assert_close(ours.double(), theirs, **TOLERANCE[dtype])
    ours.backward()
    theirs.backward()
    for own, other in zip(inputs, references, strict=True):
        torch.testing.assert_close(own.grad.double(), other.grad, **TOLERANCE[dtype])


def leaves(signals: Signals, dtype: torch.dtype) -> Signals:
    return {site: [x.detach().clone().to(dtype).requires_grad_() for x in tensors] for site, tensors in signals.items()}


# --- the reference itself -------------------------------------------------------------------------------------------


def test_map_distance_by_hand() -> None:
    """One head, two valid tokens of three. Rows: (1/2, 1/2) for (1/4, 3/4), and (1, 0) for (1/2, 1/2)."""
    teacher = torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)[None, None]
    student = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)[None, None]
    first = 0.25 * torch.tensor(0.5).log() + 0.75 * torch.tensor(1.5).log()
    second = 0.5 * torch.tensor(0.5).log() + 0.5 * torch.tensor(0.5e8).log()
    ours = reference.attention_map([student] * 2, [teacher] * 2, [2])
    assert ours.item() == pytest.approx(2 * (first + second).item() / 2, rel=1e-6)


def test_map_distance_is_torchs_where_nothing_is_clamped() -> None:
    student, teacher = (torch.randn(2, 3, 5, 5, dtype=torch.float64).softmax(-1) for _ in range(2))
    whole = torch.nn.functional.kl_div(student.log(), teacher, reduction="sum") / (2 * 3 * 5)
    torch.testing.assert_close(reference.attention_map([student], [teacher], [5, 5]), whole)


def test_softened_maps_are_those_of_divided_scores() -> None:
    scores = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(reference.softened(scores.softmax(-1), 3.0, [4]), (scores / 3).softmax(-1))


# --- the signals ----------------------------------------------------------------------------------------------------


@both_types
@every_place
def test_each_signal(site: str, dtype: torch.dtype) -> None:
    name, _ = PLACES[site]
    ours, theirs = observed(0, dtype)[site], dense(0)[name]
    assert len(ours) == len(theirs) == LAYERS + (site == "hidden")
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.double(), other, **TOLERANCE[dtype])


# --- the losses -----------------------------------------------------------------------------------------------------


@both_types
def test_attention_map(dtype: torch.dtype) -> None:
    student, teacher = (drawn("attention.probs", seed, 3, torch.float32) for seed in (0, 1))
    own, other = leaves(student, dtype), leaves(student, torch.float64)
    ours = AttentionMapLoss()(own, {"attention.probs": [x.to(dtype) for x in teacher["attention.probs"]]}, BATCH)
    theirs = reference.attention_map(other["attention.probs"], teacher["attention.probs"], LENGTHS)
    # Among the gradients are ratios P^T/P^S of up to 1e8; the relative tolerance judges them.
    compared(ours, theirs, own["attention.probs"], other["attention.probs"], dtype)


@both_types
def test_attention_map_of_models(dtype: torch.dtype) -> None:
    ours = AttentionMapLoss()(observed(0, dtype), observed(1, dtype), BATCH)
    theirs = reference.attention_map(dense(0)["probs"], dense(1)["probs"], LENGTHS)
    torch.testing.assert_close(ours.double(), theirs, **TOLERANCE[dtype])


@both_types
def test_attention_map_at_a_temperature(dtype: torch.dtype) -> None:
    """softmax(scores/τ) on both sides."""
    student, teacher = (drawn("attention.probs", seed, 2, dtype) for seed in (0, 1))
    ours = AttentionMapLoss(temperature=4.0)(student, teacher, BATCH)
    soft = [
        [reference.softened(x.double(), 4.0, LENGTHS) for x in each["attention.probs"]] for each in (student, teacher)
    ]
    torch.testing.assert_close(ours.double(), reference.attention_map(*soft, LENGTHS), **TOLERANCE[dtype])


@both_types
def test_gradient_of_the_scores_at_a_temperature(dtype: torch.dtype) -> None:
    """Through the student's softmax, where padded keys have a probability of exactly 0."""
    scores = 3 * torch.randn(3, HEADS, TOKENS, TOKENS)
    own, other = scores.clone().to(dtype).requires_grad_(), scores.double().requires_grad_()
    masked = ~BATCH["attention_mask"].bool()[:, None, None, :]
    teacher = drawn("attention.probs", 1, 1, dtype)
    student = own.masked_fill(masked, torch.finfo(dtype).min).softmax(-1)
    ours = AttentionMapLoss(temperature=4.0)({"attention.probs": [student]}, teacher, BATCH)
    probs = other.masked_fill(masked, -torch.inf).div(4.0).softmax(-1)
    soft = [reference.softened(x.double(), 4.0, LENGTHS) for x in teacher["attention.probs"]]
    compared(ours, reference.attention_map([probs], soft, LENGTHS), [own], [other], dtype)


def test_attention_map_of_some_layers() -> None:
    student, teacher = (drawn("attention.probs", seed, 3, torch.float64) for seed in (0, 1))
    ours = AttentionMapLoss(layers=[[0, 2], [2, 1]])(student, teacher, BATCH)
    own, other = student["attention.probs"], teacher["attention.probs"]
    torch.testing.assert_close(ours, reference.attention_map([own[0], own[2]], [other[2], other[1]], LENGTHS))


def test_images_have_no_padding() -> None:
    student, teacher = (torch.randn(2, 3, 5, 5, dtype=torch.float64).softmax(-1) for _ in range(2))
    ours = AttentionMapLoss()({"attention.probs": [student]}, {"attention.probs": [teacher]}, {})
    torch.testing.assert_close(ours, reference.attention_map([student], [teacher], [5, 5]))


@both_types
@pytest.mark.parametrize("padding", ["ignore", "include"])
@pytest.mark.parametrize("site", [site for site in PLACES if site != "attention.probs"])
def test_match(site: str, padding: str, dtype: torch.dtype) -> None:
    student, teacher = (drawn(site, seed, 2, torch.float32) for seed in (0, 1))
    own, other = leaves(student, dtype), leaves(student, torch.float64)
    ours = FeatureMatchingLoss(site, padding=padding)(own, {site: [x.to(dtype) for x in teacher[site]]}, BATCH)
    lengths = LENGTHS if padding == "ignore" else None
    theirs = reference.matched(other[site], teacher[site], lengths, PLACES[site][1])
    compared(ours, theirs, own[site], other[site], dtype)


@both_types
@pytest.mark.parametrize("padding", ["ignore", "include"])
@every_place
def test_match_of_models(site: str, padding: str, dtype: torch.dtype) -> None:
    """From the batch to the number, in each of the four places of the attention output, and the others."""
    name, axes = PLACES[site]
    ours = FeatureMatchingLoss(site, padding=padding)(observed(0, dtype), observed(1, dtype), BATCH)
    theirs = reference.matched(dense(0)[name], dense(1)[name], LENGTHS if padding == "ignore" else None, axes)
    torch.testing.assert_close(ours.double(), theirs, **TOLERANCE[dtype])


# --- a deeper teacher -----------------------------------------------------------------------------------------------

LAYER_MAPS: dict[str, Callable[[int, int], int]] = {
    "hidden": lambda layer, times: times * layer,
    "attention.output": lambda layer, times: times * layer + times - 1,
    "attention.probs": lambda layer, times: times * layer + times - 1,
}


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("site", LAYER_MAPS)
def test_a_deeper_teacher(site: str, times: int) -> None:
    """arXiv:2101.05938, released code: of a teacher k times as deep, hidden k·i, and of what layers hold, k·i + k − 1."""
    depth, extra = 2, int(site == "hidden")
    student = drawn(site, 0, depth + extra, torch.float64)
    teacher = drawn(site, 1, times * depth + extra, torch.float64)
    chosen = [teacher[site][LAYER_MAPS[site](layer, times)] for layer in range(depth + extra)]
    ours = FeatureMatchingLoss(site, padding="include")(student, teacher, BATCH)
    torch.testing.assert_close(ours, reference.matched(student[site], chosen, None, ()))
    if site == "attention.probs":
        ours = AttentionMapLoss()(student, teacher, BATCH)
        torch.testing.assert_close(ours, reference.attention_map(student[site], chosen, LENGTHS))


# --- the two together -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_balance(share: float) -> None:
    """γ·L_map + (1 − γ)·L_out; a side without a share is neither computed nor asked for."""
    student, teacher = (
        drawn("attention.probs", seed, 2, torch.float64) | drawn("attention.output", seed, 2, torch.float64)
        for seed in (0, 1)
    )
    loss = WeightedPairLoss(share, AttentionMapLoss(), FeatureMatchingLoss("attention.output", padding="include"))
    wanted = [site for site, part in (("attention.probs", share), ("attention.output", 1 - share)) if part]
    assert sorted(loss.sites) == sorted(wanted)
    ours = loss({site: student[site] for site in wanted}, {site: teacher[site] for site in wanted}, BATCH)
    first = reference.attention_map(student["attention.probs"], teacher["attention.probs"], LENGTHS)
    second = reference.matched(student["attention.output"], teacher["attention.output"], None, ())
    torch.testing.assert_close(ours, share * first + (1 - share) * second, rtol=1e-9, atol=1e-9)


def test_prediction_sums_over_classes() -> None:
    """A and B sum where TernaryBERT averages: three times as much for three classes."""
    own, other = observed(0, torch.float64)["logits"], dense(1)["logits"]
    probs, logs = other[0].softmax(-1), dense(0)["logits"][0].log_softmax(-1)
    summed = -(probs * logs).sum() / len(LENGTHS)
    for classes, expected in (("sum", summed), ("mean", summed / CLASSES)):
        ours = LogitDistillationLoss(classes=classes)({"logits": own}, {"logits": other}, BATCH)
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


# --- the whole step of a W2A8 model ---------------------------------------------------------------------------------

# losses=… and further words of the command line → coefficients of the map and of the output loss
RECIPES = {
    ("attention_map",): (1.0, 0.0),
    ("attention_output",): (0.0, 1.0),
    ("unified", "losses.output.weight=0.3"): (1.0, 0.3),
    ("unified", "losses.map.weight=0.1"): (0.1, 1.0),
    ("unified_gamma", "losses.unified.gamma=0.7"): (0.7, 0.3),
}


@cache
def configured(name: str, *words: str) -> list[Any]:
    """The losses of a recipe, with padding counted in the mean squared errors, as released."""
    nodes = composed("quantization=ternary_w2a8", f"losses={name}", *words).losses
    for node in [*nodes.values(), *(node["second"] for node in nodes.values() if "second" in node)]:
        if "padding" in node:
            node["padding"] = "include"
    return list(create_all(nodes, "losses").values())


@both_types
@pytest.mark.parametrize("recipe", RECIPES, ids=" ".join)
def test_total_loss_and_every_gradient(recipe: tuple[str, ...], dtype: torch.dtype) -> None:
    """L_pred + Σ MSE(X) + map_coeff·Σ L_map + output_coeff·Σ L_out."""
    signals, teacher, student = w2a8.our_run(None, dtype)
    batch, (of_map, of_output) = w2a8.text_batch(), RECIPES[recipe]
    ours = torch.stack([loss.weight * loss(signals, teacher, batch) for loss in configured(*recipe)]).sum()
    run, dense_teacher, state = w2a8.reference_run(None)
    theirs = (
        w2a8.reference.prediction_loss(run.signals, dense_teacher)
        + w2a8.reference.layer_loss(run.signals, dense_teacher, "hidden")
        + of_map * reference.attention_map(run.signals["probs"], dense_teacher["probs"], batch["attention_mask"].sum(1))
        + of_output * w2a8.reference.layer_loss(run.signals, dense_teacher, "output")
    )
    torch.testing.assert_close(ours.double(), theirs, **TOLERANCE[dtype])
    ours.backward()
    theirs.backward()
    for name, parameter in student.named_parameters():
        own, other = (torch.zeros_like(p) if p.grad is None else p.grad for p in (parameter, state[name]))
        torch.testing.assert_close(
            own.double(), other, **TOLERANCE[dtype], msg=lambda text, name=name: f"{name}: {text}"
        )
