"""What a faithful implementation must show, where no other file holds it; docs/papers.md has the whole list."""

from __future__ import annotations

import copy
import csv
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback
from safetensors.torch import load_file
from torch import Tensor, nn

from qat_lightning.config.builders.models import build_data, build_model, build_quantized, build_student
from qat_lightning.config.builders.training import build_callbacks, build_module, build_trainer
from qat_lightning.distillation.losses.attention_map import AttentionMapLoss
from qat_lightning.distillation.losses.feature_matching import FeatureMatchingLoss
from qat_lightning.distillation.losses.weighted_pair import WeightedPairLoss
from qat_lightning.distillation.step import DistillationStep
from qat_lightning.models.module_paths import part_paths
from qat_lightning.models.quantized_model import calibrate, step_sizes
from qat_lightning.training.module import QATModule
from tests.tiny_models import HEADS, LENGTHS, pad_batch, tiny_batch, tiny_model, without_labels
from tests.training.runs import composed, small_run


def student_of(*words: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The tiny BERT with the configured quantizers, calibrated on one batch; in evaluation mode."""
    student = build_quantized(composed(*words), tiny_model("bert").to(dtype))
    calibrate(student, [tiny_batch("bert", seed=5)])
    return student.to(dtype).eval()


# --- all methods ----------------------------------------------------------------------------------------------------

LEARNED_LAYER = ("attention.query", "attention.key", "attention.value", "attention.projection")
LEARNED_LAYER += ("feedforward.in", "feedforward.out")


@pytest.mark.parametrize("bits", range(2, 9))
def test_coverage_and_grid_of_learned_steps(bits: int) -> None:
    """Base 1 and C 1, as configured: position embedding on the grid k·α/(2^(b−1) − 1), head and token types untouched."""
    plain, student = tiny_model("bert"), student_of("quantization=lsq_w2a8", f"quantization.weight.bits={bits}")
    parts, largest = part_paths(student), 2 ** (bits - 1) - 1
    covered = {"embeddings.word", "embeddings.position", "pooler"}
    covered |= {f"layers.{layer}.{part}" for layer in range(2) for part in LEARNED_LAYER}
    assert covered < set(parts)
    for part, path in parts.items():
        module, weight = student.get_submodule(path), plain.get_parameter(f"{path}.weight")
        assert hasattr(module, "weight_quantizer") is (part in covered), part
        assert torch.equal(module.weight, weight), "weights themselves stay in float32"
        if part in covered:
            used, alpha = module.weight_quantizer(module.weight), module.weight_quantizer.step_size
            codes = used / alpha * largest
            torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
            assert codes.abs().max() <= largest + 1e-3
            assert not torch.equal(used, weight), part
    owners = {name.rpartition(".")[0] for name, _ in student.named_modules() if name.endswith("_quantizer")}
    cores = {path for path in owners if path.endswith("core")}
    assert len(cores) == 2
    assert owners - cores == {parts[part] for part in covered}, "LayerNorm, token types and head have none"


INDEPENDENT = (
    ("quantization.activation.scale=static",),
    ("quantization.activation.granularity=per_token",),
    ("quantization=uniform_w8a8_asymmetric", "quantization.activation.scale=static"),
    ("quantization=lsq_w2a8",),
)


def logits_of(student: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return student(**without_labels(batch)).logits


def ways_to_evaluate(student: nn.Module) -> list[Tensor]:
    """Logits of the same samples: in one padded batch, in one with still more padding, and each alone without any."""
    batch = tiny_batch("bert")
    cut = {name: value for name, value in batch.items() if name != "labels"}
    alone = [
        logits_of(student, {name: value[sample : sample + 1, :length] for name, value in cut.items()})
        for sample, length in enumerate(LENGTHS)
    ]
    return [logits_of(student, batch), logits_of(student, pad_batch(batch, 7)), torch.cat(alone)]


@pytest.mark.parametrize("words", INDEPENDENT, ids=" ".join)
def test_a_samples_result_depends_neither_on_its_batch_nor_on_padding(words: tuple[str, ...]) -> None:
    """Base 5, in float64, where no value falls to the other side of a rounding border by summing in another order."""
    together, padded, alone = ways_to_evaluate(student_of(*words, dtype=torch.float64))
    torch.testing.assert_close(padded, together, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(alone, together, rtol=1e-9, atol=1e-9)
    assert not torch.equal(together[0], together[1])


def test_with_the_papers_dynamic_scales_a_samples_result_depends_on_its_batch() -> None:
    together, _, alone = ways_to_evaluate(student_of(dtype=torch.float64))
    assert (alone - together).abs().max() > 1e-3


# --- KD-QAT ---------------------------------------------------------------------------------------------------------


def maps_from(scores: Tensor, lengths: tuple[int, ...]) -> dict[str, list[Tensor]]:
    """One layer's maps, no probability on padded keys."""
    keys = torch.arange(scores.shape[-1]) < torch.tensor(lengths)[:, None]
    return {"attention.probs": [scores.masked_fill(~keys[:, None, None, :], -torch.inf).softmax(-1)]}


def batch_of(lengths: tuple[int, ...], columns: int) -> dict[str, Tensor]:
    return {"attention_mask": (torch.arange(columns) < torch.tensor(lengths)[:, None]).long()}


@given(
    seed=st.integers(0, 999), columns=st.integers(0, 5), constant=st.floats(-9, 9), tau=st.sampled_from([0.5, 1.0, 4.0])
)
def test_map_loss_of_equal_maps_padding_and_moved_rows(seed: int, columns: int, constant: float, tau: float) -> None:
    """A 1: 0 for equal maps, above it for others; blind to padding and to a constant on a row of scores."""
    generator, tokens = torch.Generator().manual_seed(seed), max(LENGTHS)
    shape = (len(LENGTHS), HEADS, tokens, tokens)
    own, other = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    student, teacher, batch = maps_from(own, LENGTHS), maps_from(other, LENGTHS), batch_of(LENGTHS, tokens)
    loss = AttentionMapLoss(temperature=tau)
    value = loss(student, teacher, batch)
    assert value > 1e-4
    assert loss(teacher, teacher, batch).abs() < 1e-12
    moved = own.clone()
    moved[0, 1, 2] += constant
    torch.testing.assert_close(loss(maps_from(moved, LENGTHS), teacher, batch), value, rtol=1e-7, atol=1e-9)
    wider = [torch.nn.functional.pad(scores, (0, columns, 0, columns), value=1.0) for scores in (own, other)]
    padded = loss(*(maps_from(scores, LENGTHS) for scores in wider), batch_of(LENGTHS, tokens + columns))
    torch.testing.assert_close(padded, value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "loss",
    [
        AttentionMapLoss(),
        AttentionMapLoss(temperature=2.0),
        WeightedPairLoss(0.5, AttentionMapLoss(), FeatureMatchingLoss("attention.output")),
    ],
)
def test_neither_map_nor_unified_loss_reaches_the_teacher(loss: Any) -> None:
    """A 2, were the teacher run with gradients."""
    tokens = max(LENGTHS)

    def signals() -> dict[str, list[Tensor]]:
        maps = torch.randn(len(LENGTHS), HEADS, tokens, tokens).softmax(-1).requires_grad_()
        return {
            "attention.probs": [maps],
            "attention.output": [torch.randn(len(LENGTHS), tokens, 8, requires_grad=True)],
        }

    student, teacher = signals(), signals()
    loss(student, teacher, batch_of(LENGTHS, tokens)).backward()
    assert all(student[site][0].grad.any() for site in loss.sites)
    assert all(teacher[site][0].grad is None for site in teacher)


SIDES = {
    ("losses=unified", "losses.map.weight=0"): "attention.output",
    ("losses=unified", "losses.output.weight=0"): "attention.probs",
    ("losses=unified_gamma", "losses.unified.gamma=0"): "attention.output",
    ("losses=unified_gamma", "losses.unified.gamma=1"): "attention.probs",
    ("losses=unified_gamma", "losses.unified.first.weight=0"): "attention.output",
    ("losses=unified_gamma", "losses.unified.second.weight=0"): "attention.probs",
}


@pytest.mark.parametrize("words", SIDES, ids=" ".join)
def test_a_side_without_weight_is_neither_computed_nor_captured(words: tuple[str, ...], monkeypatch) -> None:
    """A 4, as configured; the teacher's attention is opened only where a map is asked for."""
    left, off = (
        SIDES[words],
        {"attention.output": AttentionMapLoss, "attention.probs": FeatureMatchingLoss}[SIDES[words]],
    )
    config = composed(*words, "~losses.hidden", "intervention=none", "intervention_schedule=none")
    data = build_data(config)
    data.load()
    teacher = build_model(config, data)
    student = build_student(config, copy.deepcopy(teacher), data)
    monkeypatch.setattr(off, "__call__", lambda *arguments: pytest.fail("computed without a weight"))
    module = build_module(config, "train", 2, student, data, teacher)
    batch = data.example_batch(4)
    for watched in (module.distillation.capture_student, module.distillation.capture_teacher):
        assert set(watched.paths) == {left}
    signals = module.distillation.capture_student(batch), module.distillation.teacher_signals(batch)
    values = [loss(*signals, batch) for loss in module.distillation.losses.values()]
    assert len(values) == 2
    assert all(value > 0 for value in values)
    assert (teacher.config._attn_implementation == "sdpa") is (left == "attention.output")


# --- Teacher Intervention -------------------------------------------------------------------------------------------

Seen = Callable[[QATModule], None]


class Watch(Callback):
    """Calls a function before the first step and after each."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.seen(module)

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.seen(module)


def watched_stage(stage: str, steps: int, folder: Path, seen: Seen, *words: str) -> None:
    config = composed(*words)
    data = build_data(config)
    data.load()
    teacher = build_model(config, data)
    module = build_module(config, stage, steps, build_student(config, copy.deepcopy(teacher), data), data, teacher)
    callbacks = [*build_callbacks(config, stage, data), Watch(seen)]
    build_trainer(config, stage, steps, folder, callbacks, validate_every=100).fit(module, datamodule=data)


@pytest.mark.parametrize("optimizer", ["adamw", "bert_adam"])
def test_momentum_of_an_earlier_intervention_moves_nothing(tmp_path: Path, optimizer: str) -> None:
    """B 4 in inverted order: W_V and W_O learn under TI-M, and then stand still under TI-O, decay and momentum at rest."""
    weights: dict[str, list[Tensor]] = {"self.value.weight": [], "attention.output.dense.weight": []}
    feedforward: list[Tensor] = []

    def seen(module: QATModule) -> None:
        for name, parameter in module.student.named_parameters():
            for end, kept in weights.items():
                if "layer.0." in name and name.endswith(end):
                    kept.append(parameter.detach().clone())
            if "layer.0.intermediate.dense.weight" in name:
                feedforward.append(parameter.detach().clone())

    words = (
        "intervention_schedule=inverted",
        f"optimizer={optimizer}",
        "optimizer.weight_decay=0.5",
        "lr_scheduler=constant",
    )
    watched_stage("intervene", 9, tmp_path, seen, *words)
    # map at the first three steps, context at the next three, output at the last
    moves = {name: [not torch.equal(*pair) for pair in itertools.pairwise(kept)] for name, kept in weights.items()}
    assert moves["self.value.weight"] == [True] * 3 + [False] * 6
    assert moves["attention.output.dense.weight"] == [True] * 6 + [False] * 3
    assert all(not torch.equal(*pair) for pair in itertools.pairwise(feedforward))


def test_second_step_starts_with_a_new_optimizer_from_the_weights_of_the_first(tmp_path: Path, monkeypatch) -> None:
    """B 5: N steps in all, a new optimizer and warm-up, no step at learning rate 0, no teacher in its evaluation."""
    started: dict[str, Any] = {}
    start, validate, teach = QATModule.on_fit_start, QATModule.validation_step, DistillationStep.teacher_signals
    taught: list[bool] = []

    def on_fit_start(module: QATModule) -> None:
        start(module)
        state = {name: tensor.clone() for name, tensor in module.student.state_dict().items()}
        started[len(started)] = state, module.trainer.optimizers[0].state.copy(), module.trainer.optimizers[0]

    def validation_step(module: QATModule, batch: Any, batch_idx: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                DistillationStep,
                "teacher_signals",
                lambda own, given: taught.append(module.steps == 8) or teach(own, given),
            )
            validate(module, batch, batch_idx)

    monkeypatch.setattr(QATModule, "on_fit_start", on_fit_start)
    monkeypatch.setattr(QATModule, "validation_step", validation_step)
    results = small_run(tmp_path, "lr_scheduler.warmup=0.5", "data.batch_size=4", "stages.train.max_steps=14")
    assert results["steps"] == {"teacher": 4, "intervene": 6, "train": 8}
    handed_on = load_file(tmp_path / "checkpoints" / "intervene.safetensors")
    (_, _, first), (weights, moments, second) = started[1], started[2]
    assert all(torch.equal(weights[name], handed_on[name]) for name in handed_on)
    assert not moments
    assert first is not second
    rates = {}
    for stage in ("intervene", "train"):
        rows = csv.DictReader((tmp_path / "logs" / stage / "metrics.csv").open())
        rates[stage] = [float(row["lr"]) / 1e-3 for row in rows if row["lr"]]
    assert rates["intervene"] == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 2 / 3, 1 / 3])
    assert rates["train"] == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5, 1, 3 / 4, 2 / 4, 1 / 4])
    assert taught, "the first step's evaluation has an assisted score"
    assert not any(taught), "the second's has none"
    assert json.loads((tmp_path / "metrics.json").read_text())["assisted"] is not None


# --- KDLSQ-BERT -----------------------------------------------------------------------------------------------------


def test_thresholds_stay_positive_under_any_rate(tmp_path: Path) -> None:
    """C 3: Adam at a rate of 10 would throw a threshold below 0 at its first step."""
    smallest: list[float] = []

    def seen(module: QATModule) -> None:
        steps = [step for steps in step_sizes(module.student).values() for step in steps]
        assert all(step.isfinite().all() for step in steps)
        smallest.append(min(step.min().item() for step in steps))

    rates = (
        "quantization.step_size.weights.lr=10",
        "quantization.step_size.activations.lr=10",
        "lr_scheduler=constant",
    )
    common = ("intervention=none", "intervention_schedule=none", "losses=kdlsq", "optimizer=kdlsq")
    watched_stage("train", 4, tmp_path, seen, "quantization=lsq_w2a8", *common, *rates)
    assert smallest[0] > 1e-3
    assert smallest[1:] == pytest.approx([1e-5] * 4), "thrown against the floor, and not through it"
