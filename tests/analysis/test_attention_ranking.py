"""Ranking loss and cover length against naive loops over rows and pairs, ties and padding included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat_lightning.analysis.attention_maps import compare_maps
from qat_lightning.analysis.attention_ranking import cover_length_ratio, ranking_loss

BATCH, HEADS = 3, 2


def random_maps(seed: int, length: int, levels: int | None = None) -> torch.Tensor:
    """(B, H, N, N) rows that sum to 1; with `levels`, of so few values that many tie."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(BATCH, HEADS, length, length, generator=generator)
    return (scores if levels is None else (scores * levels).round()).softmax(-1)


def random_mask(seed: int, length: int, side: str) -> torch.Tensor:
    """Between one and all tokens of each sample, the rest padded on that side."""
    valid = torch.randint(1, length + 1, (BATCH,), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(length) < valid[:, None]).long()
    return mask if side == "right" else mask.flip(-1)


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def naive_ranking_loss(student: list[list[float]], teacher: list[list[float]], count: str) -> tuple[float, int]:
    """Of one head without padding: the sum, and how many pairs it has."""
    length, total, pairs = len(student), 0.0, 0
    if count == "pairs":
        chosen = [(i, j) for i in range(length) for j in range(i + 1, length)]
    else:  # the ranges of the released code; a pair of a key with itself is none
        chosen = [(i, j) for i in range(length - 1) for j in range(1, length) if i != j]
    for own, other in zip(student, teacher, strict=True):
        for i, j in chosen:
            total += max(0.0, -(own[i] - own[j]) * sign(other[i] - other[j]))
            pairs += 1
    return total, pairs


def naive_cover(student: list[list[float]], teacher: list[list[float]], k: int) -> float:
    length, ratios = len(student), []
    for own, other in zip(student, teacher, strict=True):
        order = sorted(range(length), key=lambda key: -own[key])
        best = sorted(range(length), key=lambda key: -other[key])[:k]
        ratios.append(max(order.index(key) for key in best) / length)
    return sum(ratios) / length


def naive(function, student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, *arguments) -> list[list]:
    """The function of each sample and head, without its padding."""
    results = []
    for own, other, tokens in zip(student.double(), teacher.double(), mask.bool(), strict=True):
        own, other = own[:, tokens][:, :, tokens].tolist(), other[:, tokens][:, :, tokens].tolist()
        results.append([function(*pair, *arguments) for pair in zip(own, other, strict=True)])
    return results


cases = given(
    seed=st.integers(0, 10_000),
    length=st.integers(1, 9),
    levels=st.sampled_from([None, 1, 2]),
    side=st.sampled_from(["left", "right"]),
)


@cases
def test_ranking_loss_matches_loops(seed: int, length: int, levels: int | None, side: str) -> None:
    student, teacher = random_maps(seed, length, levels), random_maps(seed + 1, length, levels)
    mask = random_mask(seed, length, side)
    for count in ("pairs", "reference"):
        expected = torch.tensor(naive(naive_ranking_loss, student, teacher, mask, count))
        got = ranking_loss(student, teacher, {"attention_mask": mask}, count=count)
        assert got.shape == (BATCH, HEADS)
        assert torch.allclose(got, expected[..., 0], atol=1e-6)
        mean = ranking_loss(student, teacher, {"attention_mask": mask}, count=count, normalise=True)
        assert torch.allclose(mean, expected[..., 0] / expected[..., 1].clamp(min=1), atol=1e-6)


@cases
def test_cover_length_matches_loops(seed: int, length: int, levels: int | None, side: str) -> None:
    student, teacher = random_maps(seed, length, levels), random_maps(seed + 1, length, levels)
    mask = random_mask(seed, length, side)
    for k in (1, 3, 5):
        expected = torch.tensor(naive(naive_cover, student, teacher, mask, k))
        got = cover_length_ratio(student, teacher, {"attention_mask": mask}, k=k)
        assert torch.allclose(got, expected, atol=1e-6)


def test_by_hand() -> None:
    teacher = torch.tensor([[0.5, 0.3, 0.2]] * 3)
    student = torch.tensor([[0.2, 0.3, 0.5]] * 3)  # all three pairs the wrong way round: 0.1 + 0.3 + 0.2 a row
    assert ranking_loss(student, teacher).item() == pytest.approx(1.8)
    assert ranking_loss(student, teacher, normalise=True).item() == pytest.approx(0.2)
    assert ranking_loss(student, teacher, count="reference").item() == pytest.approx(1.8)  # no inner pair
    assert cover_length_ratio(student, teacher, k=1).item() == pytest.approx(2 / 3)
    assert cover_length_ratio(student, teacher, k=2).item() == pytest.approx(2 / 3)
    one_inner_pair = torch.tensor([[0.4, 0.1, 0.2, 0.3]] * 4), torch.tensor([[0.4, 0.2, 0.1, 0.3]] * 4)
    assert ranking_loss(*one_inner_pair).item() == pytest.approx(0.4)
    assert ranking_loss(*one_inner_pair, count="reference").item() == pytest.approx(0.8)


def test_long_maps_keep_their_digits_and_fit_into_memory() -> None:
    """1,024 tokens would take 8 GiB of pairs; the reversed order has a closed form."""
    length = 1024
    row = torch.arange(1, length + 1).double()
    row /= row.sum()
    student = row.expand(2, length, length).float()
    expected = length * sum(k * (2 * k + 1 - length) for k in range(length)) / (length * (length + 1) / 2)
    assert ranking_loss(student, student.flip(-1)).tolist() == pytest.approx([expected] * 2, rel=1e-5)


def test_refused_arguments() -> None:
    maps = random_maps(0, 4)
    with pytest.raises(ValueError, match="count='twice' is unknown: choose one of pairs, reference"):
        ranking_loss(maps, maps, count="twice")
    with pytest.raises(ValueError, match=r"\(3, 2, 4, 4\) and \(3, 1, 4, 4\) do not match"):
        ranking_loss(maps, maps[:, :1])
    with pytest.raises(ValueError, match="k=0 must be 1 or more"):
        cover_length_ratio(maps, maps, k=0)


def test_a_deeper_teacher_is_compared_by_its_pairs() -> None:
    teacher = {"attention.probs": [random_maps(seed, 6) for seed in range(4)]}
    student = {"attention.probs": [teacher["attention.probs"][layer] for layer in (1, 3)]}
    assert compare_maps(student, teacher, {})["ranking_loss"] == [0, 0]
    with pytest.raises(ValueError, match="multiple"):
        compare_maps(teacher, student, {})
