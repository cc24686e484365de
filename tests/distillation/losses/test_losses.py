"""Distances and losses: their formulas, and what padding may change."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from qat_lightning.distillation.losses.embeddings import EmbeddingLoss, SimilarityLoss
from qat_lightning.distillation.losses.feature_matching import (
    Distance,
    FeatureMatchingLoss,
    mean_squared_error,
    score_mean_squared_error,
)
from qat_lightning.distillation.losses.logits import IGNORED, LogitDistillationLoss, TaskLoss
from qat_lightning.models.capture import SignalCapture, what_counts
from qat_lightning.models.convert import open_attention
from qat_lightning.models.sites import AXES
from tests.tiny_models import LAYERS, LENGTHS, pad_batch, tiny_batch, tiny_model

TOKENS = max(LENGTHS)
MASK = torch.finfo(torch.float32).min
SIZES = {"B": len(LENGTHS), "H": 4, "N": TOKENS, "M": TOKENS, "D": 8, "E": 32, "C": 3}
SITES_WITH_TOKENS = [site for site in AXES if site != "logits"]


def signal(site: str, seed: int, layers: int = 2) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shape = [SIZES[axis] for axis in AXES[site]]
    return {site: [torch.randn(shape, generator=generator) for _ in range(layers)]}


def text_batch() -> dict[str, Tensor]:
    return tiny_batch("bert")


def distance_of(site: str) -> Distance:
    return score_mean_squared_error if site == "attention.scores" else mean_squared_error


def test_mean_squared_error_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 2.0], [5.0, 5.0]]), torch.tensor([[1.0, 4.0], [0.0, 0.0]])
    assert mean_squared_error(student, teacher, None) == (0 + 4 + 25 + 25) / 4
    assert mean_squared_error(student, teacher, torch.tensor([[True], [False]])) == (0 + 4) / 2
    assert mean_squared_error(student, teacher, torch.tensor([[False], [False]])) == 0


def test_score_distance_by_hand() -> None:
    # arXiv:2009.12812, released code: what is ≤ −100 becomes 0 on each side by itself, and still counts
    student, teacher = torch.tensor([1.0, MASK, -100.0, -99.0]), torch.tensor([3.0, MASK, -3.0, -99.0])
    assert score_mean_squared_error(student, teacher, None) == (4 + 0 + 9 + 0) / 4
    assert score_mean_squared_error(student, teacher, torch.tensor([True, False, True, True])) == (4 + 9 + 0) / 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_are_float32_at_least(dtype: torch.dtype) -> None:
    """Under autocast as well; float64 stays, for finite differences."""
    student = {"hidden": [torch.randn(2, 3, 4, dtype=dtype)], "logits": [torch.randn(2, 3, dtype=dtype)]}
    teacher = {site: [tensor + 0.1 for tensor in tensors] for site, tensors in student.items()}
    batch = {"labels": torch.tensor([0, 1])}
    plain = [
        loss(student, teacher, batch) for loss in (FeatureMatchingLoss("hidden"), LogitDistillationLoss(), TaskLoss())
    ]
    with torch.autocast("cpu", torch.bfloat16):
        under = [
            loss(student, teacher, batch)
            for loss in (FeatureMatchingLoss("hidden"), LogitDistillationLoss(), TaskLoss())
        ]
    for first, second in zip(plain, under, strict=True):
        assert first.dtype == second.dtype == dtype
        assert torch.equal(first, second)


@pytest.mark.parametrize("site", SITES_WITH_TOKENS)
def test_match_sums_over_layers(site: str) -> None:
    student, teacher = signal(site, 0), signal(site, 1)
    each = [(own - other).square().mean() for own, other in zip(student[site], teacher[site], strict=True)]
    loss = FeatureMatchingLoss(site, padding="include")(student, teacher, text_batch())
    torch.testing.assert_close(loss, each[0] + each[1])


@pytest.mark.parametrize("site", SITES_WITH_TOKENS)
def test_masked_reduction_is_the_mean_over_what_is_valid(site: str) -> None:
    """An independent dense computation: cut every sample to its own length."""
    student, teacher = signal(site, 0), signal(site, 1)
    total, axes = 0.0, AXES[site][1:]
    for own, other in zip(student[site], teacher[site], strict=True):
        valid = []
        for sample, length in enumerate(LENGTHS):
            cut = tuple(slice(length) if axis in "NM" else slice(None) for axis in axes)
            valid.append((own[sample][cut] - other[sample][cut]).square().flatten())
        total += torch.cat(valid).mean()
    torch.testing.assert_close(FeatureMatchingLoss(site)(student, teacher, text_batch()), total)


def observed(model_seed: int, batch: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    with torch.no_grad():
        return SignalCapture(open_attention(tiny_model("bert", seed=model_seed)), AXES)(batch)


@pytest.mark.parametrize("site", SITES_WITH_TOKENS)
@given(columns=st.integers(1, 12))
def test_more_padding_changes_no_masked_loss(site: str, columns: int) -> None:
    """By real models, whose valid tokens do not see the padding."""
    loss = FeatureMatchingLoss(site, distance_of(site))
    values = [
        loss(observed(0, batch), observed(1, batch), batch)
        for batch in (text_batch(), pad_batch(text_batch(), columns))
    ]
    assert values[0] > 1e-4
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("site", SITES_WITH_TOKENS)
def test_reference_reduction_counts_padding(site: str) -> None:
    student, teacher, batch = signal(site, 0), signal(site, 1), text_batch()
    loss, masked = (
        FeatureMatchingLoss(site, distance_of(site), padding="include"),
        FeatureMatchingLoss(site, distance_of(site)),
    )
    before, before_masked = loss(student, teacher, batch), masked(student, teacher, batch)
    # the last token of the last sample is padding; it is an axis of every site
    index = (-1, *(-1 if axis in "NM" else slice(None) for axis in AXES[site][1:]))
    student[site][0][index] += 3.0
    assert loss(student, teacher, batch) != before
    assert masked(student, teacher, batch) == before_masked


def test_reference_scores_count_masked_keys_in_the_denominator() -> None:
    batch = text_batch()
    masked = ~batch["attention_mask"].bool()[:, None, None, :].expand(-1, 4, TOKENS, -1)
    student, teacher = signal("attention.scores", 0, 1), signal("attention.scores", 1, 1)
    own, other = student["attention.scores"][0], teacher["attention.scores"][0]
    expected = (own - other).square()[~masked].sum() / own.numel()
    for scores in (own, other):
        scores[masked] += MASK
    loss = FeatureMatchingLoss("attention.scores", score_mean_squared_error, padding="include")(student, teacher, batch)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("padding", ["ignore", "include"])
def test_masked_scores_give_finite_gradients(padding: str) -> None:
    batch = text_batch()
    mask = torch.where(batch["attention_mask"].bool(), 0.0, MASK)[:, None, None, :]
    student = (torch.randn(3, 4, TOKENS, TOKENS)).requires_grad_()
    teacher = torch.randn(3, 4, TOKENS, TOKENS)
    loss = FeatureMatchingLoss("attention.scores", score_mean_squared_error, padding=padding)
    loss({"attention.scores": [student + mask]}, {"attention.scores": [teacher + mask]}, batch).backward()
    keys = batch["attention_mask"].bool()[:, None, None, :].expand_as(student)
    assert student.grad.isfinite().all()
    assert student.grad[keys].any()
    assert not student.grad[~keys].any()


def test_a_constant_on_a_row_of_scores_changes_their_distance_but_not_softmax() -> None:
    student, teacher, batch = signal("attention.scores", 0, 1), signal("attention.scores", 1, 1), text_batch()
    moved = {"attention.scores": [student["attention.scores"][0].clone()]}
    moved["attention.scores"][0][0, 0, 0] += 5.0
    scores, probs = (
        FeatureMatchingLoss("attention.scores", score_mean_squared_error),
        FeatureMatchingLoss("attention.probs"),
    )
    assert not torch.isclose(scores(moved, teacher, batch), scores(student, teacher, batch), rtol=1e-3)

    def mapped(signals: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        return {"attention.probs": [tensor.softmax(-1) for tensor in signals["attention.scores"]]}

    torch.testing.assert_close(
        probs(mapped(moved), mapped(teacher), batch), probs(mapped(student), mapped(teacher), batch)
    )


@pytest.mark.parametrize(
    "loss",
    [FeatureMatchingLoss("hidden"), FeatureMatchingLoss("hidden", padding="include"), LogitDistillationLoss()],
)
def test_the_teacher_gets_no_gradient(loss: FeatureMatchingLoss | LogitDistillationLoss) -> None:
    depths = {"hidden": LAYERS + 1, "logits": 1}
    student = {site: [t.requires_grad_() for t in signal(site, 0, depth)[site]] for site, depth in depths.items()}
    teacher = {site: [t.requires_grad_() for t in signal(site, 1, depth)[site]] for site, depth in depths.items()}
    loss(student, teacher, text_batch()).backward()
    assert any(tensor.grad is not None and tensor.grad.any() for tensors in student.values() for tensor in tensors)
    assert all(tensor.grad is None for tensors in teacher.values() for tensor in tensors)


def test_layers_say_which_belong_together() -> None:
    """A teacher of twice the depth: hidden i ↦ 2i, arXiv:2101.05938, released code."""
    student, teacher = signal("hidden", 0, 3), signal("hidden", 1, 5)
    loss = FeatureMatchingLoss("hidden", padding="include", layers=[[0, 0], [1, 2], [2, 4]])
    pairs = [(0, 0), (1, 2), (2, 4)]
    expected = sum((student["hidden"][own] - teacher["hidden"][other]).square().mean() for own, other in pairs)
    torch.testing.assert_close(loss(student, teacher, text_batch()), expected)


@pytest.mark.parametrize(
    ("site", "student", "teacher", "pairs"),
    [("hidden", 3, 5, [(0, 0), (1, 2), (2, 4)]), ("attention.scores", 2, 6, [(0, 2), (1, 5)])],
)
def test_a_deeper_teacher_is_mapped_evenly(site: str, student: int, teacher: int, pairs: list[tuple[int, int]]) -> None:
    """arXiv:2101.05938, released code: scores i ↦ k·i + k − 1, hidden states i ↦ k·i, the embeddings' among them."""
    own, other = signal(site, 0, student), signal(site, 1, teacher)
    expected = sum((own[site][s] - other[site][t]).square().mean() for s, t in pairs)
    torch.testing.assert_close(FeatureMatchingLoss(site, padding="include")(own, other, text_batch()), expected)


@pytest.mark.parametrize("pair", [[3, 0], [0, 5], [-1, 0]])
def test_a_layer_beyond_the_depth_names_the_range(pair: list[int]) -> None:
    message = rf"layers holds \[{pair[0]}, {pair[1]}\], but the student's go from 0 to 2 and the teacher's from 0 to 4"
    with pytest.raises(ValueError, match=message):
        FeatureMatchingLoss("hidden", layers=[pair])(signal("hidden", 0, 3), signal("hidden", 1, 5), text_batch())


def test_unknown_names_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"unknown site 'states'; sites: .*hidden"):
        FeatureMatchingLoss("states")
    with pytest.raises(ValueError, match="padding='mean' is unknown: choose one of ignore, include"):
        FeatureMatchingLoss("hidden", padding="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="classes='max' is unknown: choose one of sum, mean"):
        LogitDistillationLoss(classes="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature=0 must be positive"):
        LogitDistillationLoss(temperature=0)


def test_each_loss_says_its_sites_and_weight() -> None:
    assert (FeatureMatchingLoss("hidden", weight=0.5).sites, FeatureMatchingLoss("hidden", weight=0.5).weight) == (
        ("hidden",),
        0.5,
    )
    assert (LogitDistillationLoss(weight=2.0).sites, LogitDistillationLoss(weight=2.0).weight) == (("logits",), 2.0)
    assert (TaskLoss(weight=3.0).sites, TaskLoss(weight=3.0).weight) == (("logits",), 3.0)


def logits(*rows: list[float]) -> dict[str, list[Tensor]]:
    return {"logits": [torch.tensor(rows)]}


def test_soft_cross_entropy_by_hand() -> None:
    # teacher (3/4, 1/4), student (1/2, 1/2): −Σ p log q = log 2, whatever the teacher
    loss = LogitDistillationLoss()(logits([0.0, 0.0]), logits([math.log(3), 0.0]), {})
    assert loss.item() == pytest.approx(math.log(2))
    # student (1/4, 3/4): 3/4·log 4 + 1/4·log 4/3
    loss = LogitDistillationLoss()(logits([0.0, math.log(3)]), logits([math.log(3), 0.0]), {})
    assert loss.item() == pytest.approx(0.75 * math.log(4) + 0.25 * math.log(4 / 3))


@given(classes=st.integers(2, 6), rows=st.integers(1, 4), seed=st.integers(0, 99))
def test_sum_over_classes_is_their_number_times_the_mean(classes: int, rows: int, seed: int) -> None:
    # arXiv:2211.11014 and 2302.11812 sum, arXiv:2009.12812 averages: twice for two classes, three times for MNLI
    generator = torch.Generator().manual_seed(seed)
    student, teacher = ({"logits": [torch.randn(rows, classes, generator=generator)]} for _ in range(2))
    summed, averaged = (LogitDistillationLoss(classes=way)(student, teacher, {}) for way in ("sum", "mean"))
    torch.testing.assert_close(summed, classes * averaged)


def test_temperature_softens_both_sides() -> None:
    student, teacher = logits([1.0, -2.0, 0.5]), logits([3.0, 0.0, -1.0])
    halved = {"logits": [teacher["logits"][0] / 2]}, {"logits": [student["logits"][0] / 2]}
    expected = LogitDistillationLoss()(halved[1], halved[0], {})
    torch.testing.assert_close(LogitDistillationLoss(temperature=2.0)(student, teacher, {}), expected)


def test_a_single_logit_is_a_regression() -> None:
    # STS-B: MSE(logits_S, logits_T), arXiv:2009.12812, released code
    assert LogitDistillationLoss()(logits([1.0], [2.0]), logits([3.0], [2.5]), {}) == (4 + 0.25) / 2


def test_task_loss() -> None:
    student = logits([2.0, 0.0], [0.0, 1.0])
    labels = torch.tensor([0, 0])
    expected = functional.cross_entropy(student["logits"][0], labels)
    assert TaskLoss()(student, {}, {"labels": labels}) == expected
    assert TaskLoss()(logits([1.0], [2.0]), {}, {"labels": torch.tensor([3.0, 2.5])}) == (4 + 0.25) / 2


def test_what_counts() -> None:
    batch = {"attention_mask": torch.tensor([[1, 1, 0]])}
    assert what_counts("logits", batch) is None
    assert what_counts("hidden", {"pixel_values": torch.zeros(1)}) is None
    assert torch.equal(what_counts("hidden", batch), torch.tensor([[[True], [True], [False]]]))
    expected = torch.tensor([[[[True, True, False], [True, True, False], [False, False, False]]]])
    assert torch.equal(what_counts("attention.probs", batch), expected)
    assert what_counts("attention.context", batch).shape == (1, 1, 3, 1)


def test_embedding_losses_have_the_values_of_the_formulas():
    student = {"logits": [torch.tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True)]}
    teacher = {"logits": [torch.tensor([[0.0, 1.0], [0.0, 3.0]])]}
    assert EmbeddingLoss()(student, teacher, {}).item() == pytest.approx((2 + 1) / 2)
    # cosines of the two rows: 0 for the student, 1 for the teacher; both pairs (i, j) count
    assert SimilarityLoss()(student, teacher, {}).item() == pytest.approx(1.0)
    SimilarityLoss()(student, teacher, {}).backward()
    assert student["logits"][0].grad.abs().sum() > 0
    assert float(SimilarityLoss()({"logits": [torch.ones(1, 2)]}, {"logits": [torch.ones(1, 2)]}, {})) == 0
    with pytest.raises(ValueError, match="one vector"):
        EmbeddingLoss()({"logits": [torch.ones(1, 2, 3)]}, {"logits": [torch.ones(1, 2, 3)]}, {})


LOGITS, LABELS = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, -1.0], [1.0, 1.0, 1.0]]), torch.tensor([0, 2, IGNORED])
LOG = [[x - math.log(sum(math.exp(y) for y in row)) for x in row] for row in LOGITS.tolist()]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, -(LOG[0][0] + LOG[1][2]) / 2),
        ({"class_weights": [1, 5, 3]}, -(1 * LOG[0][0] + 3 * LOG[1][2]) / 4),
        (
            {"label_smoothing": 0.3},
            -(0.7 * LOG[0][0] + 0.1 * sum(LOG[0]) + 0.7 * LOG[1][2] + 0.1 * sum(LOG[1])) / 2,
        ),
    ],
)
def test_task_loss_has_the_values_of_the_formulas(given, expected):
    assert float(TaskLoss(**given)({"logits": [LOGITS]}, {}, {"labels": LABELS})) == pytest.approx(expected, rel=1e-6)


def test_task_loss_of_a_batch_without_labels_is_0_with_class_weights_too():
    nothing = {"labels": torch.full((3,), IGNORED)}
    for arguments in ({}, {"class_weights": [1, 5, 3]}, {"label_smoothing": 0.3}):
        assert float(TaskLoss(**arguments)({"logits": [LOGITS]}, {}, nothing)) == 0


@pytest.mark.parametrize(
    ("given", "labels", "message"),
    [
        ({"class_weights": [1, 2]}, LABELS, "2 weights for 3 classes"),
        ({"label_smoothing": 0.1}, torch.rand(3), "labels are not"),
    ],
)
def test_task_loss_refuses_labels_that_do_not_fit(given, labels, message):
    with pytest.raises(ValueError, match=message):
        TaskLoss(**given)({"logits": [LOGITS]}, {}, {"labels": labels})


@pytest.mark.parametrize("given", [{"label_smoothing": 1.0}, {"class_weights": [1.0, 0.0]}])
def test_task_loss_refuses_arguments_out_of_range(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        TaskLoss(**given)


def test_losses_of_several_labels_a_row_are_binary_cross_entropies():
    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    student, teacher, labels = [[1.0, -2.0]], [[0.5, 3.0]], [[1.0, 0.0]]
    signals = [{"logits": [torch.tensor(logits)]} for logits in (student, teacher)]
    batch = {"labels": torch.tensor(labels)}
    terms = [-math.log(sigmoid(1.0)), -math.log(1 - sigmoid(-2.0))]
    assert float(TaskLoss()(*signals, batch)) == pytest.approx(sum(terms) / 2, rel=1e-6)
    soft = [
        -(sigmoid(t) * math.log(sigmoid(s)) + (1 - sigmoid(t)) * math.log(1 - sigmoid(s)))
        for s, t in zip(student[0], teacher[0], strict=True)
    ]
    assert float(LogitDistillationLoss()(*signals, batch)) == pytest.approx(sum(soft), rel=1e-6)
    assert float(LogitDistillationLoss(classes="mean")(*signals, batch)) == pytest.approx(sum(soft) / 2, rel=1e-6)
