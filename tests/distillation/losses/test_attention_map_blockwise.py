"""The attention-map loss by blocks is the dense one: by naive loops, by finite differences, by torch's own operators."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qat_lightning.distillation.losses import attention_map as module
from qat_lightning.distillation.losses.attention_map import AttentionMapLoss
from qat_lightning.distillation.losses.attention_map_blockwise import Factors, Settings, divergence
from qat_lightning.models.sites import FACTORS

SMALLEST = 1e-8
BLOCKS = (1, 7, 24, 60, 10_000)
"""Elements of a block: of one row, of some that do not divide the queries, of all."""


def drawn(seed: int, groups: int = 2, heads: int = 4, tokens: int = 5, width: int = 3, scale: float = 1.0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    query = scale * torch.randn(2, heads, tokens, width, generator=generator, dtype=torch.float64)
    key = scale * torch.randn(2, groups, tokens, width, generator=generator, dtype=torch.float64)
    return Factors(query, key, torch.zeros(2, 1, 1, 1, dtype=torch.float64))


def padding(lengths: list[int], tokens: int, smallest: float = -1e30) -> Tensor:
    """Additive, (B, 1, 1, M)."""
    keys = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    return torch.where(keys, 0.0, smallest)[:, None, None, :].double()


def naive_row(factors: Factors, place: tuple[int, int, int], temperature: float) -> list[float]:
    """One query's map, clamped, in Python's own numbers."""
    sample, head, row = place
    group = head // (factors.query.shape[1] // factors.key.shape[1])
    query, keys = factors.query[sample, head, row].tolist(), factors.key[sample, group].tolist()
    mask = factors.mask.expand(*factors.query.shape[:3], len(keys))[sample, head, row].tolist()
    products = [sum(a * b for a, b in zip(query, key, strict=True)) for key in keys]
    scores = [(product + added) / temperature for product, added in zip(products, mask, strict=True)]
    powers = [math.exp(score - max(scores)) for score in scores]
    return [max(power / sum(powers), SMALLEST) for power in powers]


def naive(student: Factors, teacher: Factors, weights: Tensor, temperature: float) -> float:
    samples, heads, queries, _ = student.query.shape
    total = 0.0
    for sample in range(samples):
        for head in range(heads):
            for row in range(queries):
                place = (sample, head, row)
                pair = (naive_row(factors, place, temperature) for factors in (teacher, student))
                total += weights[sample, 0, row].item() * sum(p * math.log(p / q) for p, q in zip(*pair, strict=True))
    return total


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("elements", BLOCKS)
def test_value_by_naive_loops(elements: int, temperature: float, groups: int) -> None:
    causal = torch.full((5, 5), -1e30, dtype=torch.float64).triu(1)
    student = drawn(0, groups)._replace(mask=causal + padding([5, 3], 5))
    teacher = drawn(1, 4)._replace(mask=padding([5, 3], 5))
    weights = torch.rand(2, 1, 5, dtype=torch.float64)
    ours = divergence(student, teacher, Settings(weights, temperature, SMALLEST, elements))
    assert ours.item() == pytest.approx(naive(student, teacher, weights, temperature), rel=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("elements", [1, 24, 10_000])
def test_gradient_by_finite_differences(elements: int, groups: int) -> None:
    student, teacher = (drawn(seed, heads=2, groups=kept, tokens=3, width=2) for seed, kept in ((0, groups), (1, 2)))
    settings = Settings(torch.rand(2, 1, 3, dtype=torch.float64), 1.5, SMALLEST, elements)
    mask = padding([3, 2], 3)

    def of(query: Tensor, key: Tensor) -> Tensor:
        return 3 * divergence(Factors(query, key, mask), teacher, settings)

    assert torch.autograd.gradcheck(of, (student.query.requires_grad_(), student.key.requires_grad_()))


def dense(student: Factors, teacher: Factors, batch: dict[str, Tensor], loss: AttentionMapLoss) -> Tensor:
    """By way of whole maps, as the opened attention makes them."""
    maps = []
    for factors in (student, teacher):
        keys = factors.key.repeat_interleave(factors.query.shape[1] // factors.key.shape[1], dim=1)
        maps.append({"attention.probs": [(factors.query @ keys.mT + factors.mask).softmax(-1)]})
    return loss(*maps, batch)


def signals(factors: Factors) -> dict[str, list[Tensor]]:
    return {site: [tensor] for site, tensor in zip(FACTORS, factors, strict=True)}


def leaves(factors: Factors) -> Factors:
    query, key = (tensor.clone().requires_grad_() for tensor in factors[:2])
    return factors._replace(query=query, key=key)


def compared(
    student: Factors, teacher: Factors, batch: dict[str, Tensor], temperature: float, tolerance: float
) -> None:
    """Value, and the gradients relative to the largest."""
    own, other = leaves(student), leaves(student)
    ours = AttentionMapLoss(temperature=temperature, implementation="blockwise")(signals(own), signals(teacher), batch)
    theirs = dense(other, teacher, batch, AttentionMapLoss(temperature=temperature))
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    ours.backward()
    theirs.backward()
    for one, two in zip(own[:2], other[:2], strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=tolerance, atol=tolerance * float(two.grad.abs().max()))


@given(
    seed=st.integers(0, 999),
    shared=st.integers(1, 3),
    groups=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 12), min_size=2, max_size=2),
    columns=st.integers(0, 3),
    elements=st.integers(1, 2000),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    causal=st.booleans(),
    exact=st.booleans(),
)
def test_equals_the_dense_loss(
    seed: int,
    shared: int,
    groups: int,
    lengths: list[int],
    columns: int,
    elements: int,
    temperature: float,
    causal: bool,
    exact: bool,
) -> None:
    """In float64 with scores so far apart that the clamp is at work; in float32 to 1e-5."""
    tokens = max(lengths) + columns
    mask = padding(lengths, tokens, torch.finfo(torch.float32).min / 4)
    if causal:
        mask = mask + torch.full((tokens, tokens), torch.finfo(torch.float32).min / 4).triu(1)
    make = partial(drawn, groups=groups, heads=shared * groups, tokens=tokens, scale=3.0 if exact else 0.8)
    student, teacher = make(seed)._replace(mask=mask), make(seed + 1, width=4)._replace(mask=mask)
    if not exact:
        student, teacher = (Factors(*(tensor.float() for tensor in factors)) for factors in (student, teacher))
    batch = {"attention_mask": (torch.arange(tokens) < torch.tensor(lengths)[:, None]).long()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ELEMENTS", elements)
        compared(student, teacher, batch, temperature, 1e-10 if exact else 1e-5)


def test_the_clamp_is_kept() -> None:
    """A student's probability of e⁻⁴⁰ is taken for 1e-8, and pulls nothing: arXiv:2211.11014, released code."""
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    mask = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    own = Factors(one.clone().requires_grad_(), torch.tensor([[[[0.0], [-40.0]]]], dtype=torch.float64), mask)
    teacher = Factors(one, torch.tensor([[[[0.0], [0.0]]]], dtype=torch.float64), mask)
    loss = AttentionMapLoss(implementation="blockwise")(signals(own), signals(teacher), {})
    # 1/2·log(1/2 / 1) + 1/2·log(1/2 / 1e-8); unclamped it would be 20 − log 2
    assert loss.item() == pytest.approx(0.5 * math.log(0.5) + 0.5 * math.log(0.5e8))
    loss.backward()
    # Only −1/2·log p_0 is left, whose slope by the gap of 40 is −1/2·p_1: nothing to float64's eye
    assert abs(own.query.grad.item()) < 1e-15


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("smallest", [-torch.inf, torch.finfo(torch.float32).min])
def test_a_row_that_sees_no_key_does_no_harm(smallest: float, temperature: float) -> None:
    """A padded query behind a window of padding: it does not count, and may not be NaN."""
    mask = padding([5, 3], 5, smallest).float().repeat(1, 1, 5, 1)
    mask[1, :, 4] = smallest
    student, teacher = (Factors(f.query.float(), f.key.float(), mask) for f in (drawn(0), drawn(1)))
    batch = {"attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])}
    own, loss = leaves(student), AttentionMapLoss(temperature=temperature, implementation="blockwise")
    value = loss(signals(own), signals(teacher), batch)
    value.backward()
    expected = naive(
        *(Factors(*(t.double() for t in f[:2]), padding([5, 3], 5)) for f in (student, teacher)),
        batch["attention_mask"][:, None] / torch.tensor([5.0, 3.0])[:, None, None] / 8,
        temperature,
    )
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert own.query.grad.isfinite().all()
    assert own.key.grad.isfinite().all()
    assert not own.query.grad[1, :, 3:].any()
    assert not own.key.grad[1, :, 3:].any()


def test_a_batch_of_padding_alone_is_nothing() -> None:
    own = leaves(drawn(0))
    value = AttentionMapLoss(implementation="blockwise")(
        signals(own), signals(drawn(1)), {"attention_mask": torch.zeros(2, 5)}
    )
    value.backward()
    assert value == 0
    assert not own.query.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(dtype: torch.dtype) -> None:
    """Autocast changes nothing, and the gradient comes back in the signals' own type."""
    student, teacher = (Factors(*(tensor.to(dtype) for tensor in drawn(seed))) for seed in (0, 1))
    loss, own = AttentionMapLoss(implementation="blockwise"), leaves(student)
    wide = [signals(Factors(*(tensor.float() for tensor in factors))) for factors in (student, teacher)]
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(signals(own), signals(teacher), {})
        value.backward()
    assert value.dtype == torch.float32
    assert value == loss(*wide, {})
    assert own.query.grad.dtype == own.key.grad.dtype == dtype


def test_the_teacher_gets_no_gradient_and_need_not_be_alone_in_a_layer() -> None:
    student, teacher = leaves(drawn(0)), leaves(drawn(1))
    both = [{site: [a, b] for site, a, b in zip(FACTORS, student, teacher, strict=True)} for _ in range(2)]
    loss = AttentionMapLoss(layers=[[0, 1]], implementation="blockwise")
    value = loss(*both, {})
    assert value == AttentionMapLoss(implementation="blockwise")(signals(student), signals(teacher), {})
    value.backward()
    assert student.query.grad.any()
    assert teacher.query.grad is teacher.key.grad is None


def test_equal_maps_are_no_distance_and_no_gradient() -> None:
    own = leaves(drawn(0))
    value = AttentionMapLoss(implementation="blockwise")(signals(own), signals(drawn(0)), {})
    value.backward()
    assert value.abs() < 1e-14
    assert own.query.grad.abs().max() < 1e-14


def test_what_cannot_be_is_refused_in_words() -> None:
    loss = AttentionMapLoss(implementation="blockwise")
    with pytest.raises(ValueError, match=r"shapes \(2, 4, 5, 5\) and \(2, 2, 5, 5\) cannot be compared"):
        loss(signals(drawn(0)), signals(drawn(1, heads=2)), {})
    with pytest.raises(ValueError, match="implementation='flash' is unknown: choose one of dense, blockwise"):
        AttentionMapLoss(implementation="flash")  # type: ignore[arg-type]
    own = leaves(drawn(0))
    with pytest.raises(ValueError, match=r"no second derivative: give implementation='dense'"):
        torch.autograd.grad(loss(signals(own), signals(drawn(1)), {}), own.query, create_graph=True)
