"""Schedules are pure functions of (step, steps)."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qat_lightning.distillation.intervention_schedules import PiecewiseSchedule, RandomSchedule
from qat_lightning.training.lr_schedules import Constant, LinearWarmup

GRADUAL = PiecewiseSchedule({"output": 1, "context": 1, "map": 4})
INVERTED = PiecewiseSchedule({"map": 1, "context": 1, "output": 1})
NAMES = ("output", "context", "map")


@pytest.mark.parametrize(("steps", "output", "context", "maps"), [(60, 10, 10, 40), (120, 20, 20, 80)])
def test_gradual_boundaries_of_the_paper(steps: int, output: int, context: int, maps: int) -> None:
    # arXiv:2302.11812, released scripts: s = 60 gives 10/10/40, s = 120 gives 20/20/80
    sequence = [GRADUAL(step, steps) for step in range(steps)]
    assert sequence == ["output"] * output + ["context"] * context + ["map"] * maps
    assert GRADUAL.names == NAMES
    assert GRADUAL(steps + 940, steps) == "map", "beyond the last step"


@given(steps=st.integers(1, 10_000), data=st.data())
def test_gradual_for_any_number_of_steps(steps: int, data: st.DataObject) -> None:
    """TI-O for g < s/6, TI-C for s/6 ≤ g < s/3, TI-M for the rest, in whole numbers."""
    step = data.draw(st.integers(0, steps - 1))
    expected = "output" if 6 * step < steps else "context" if 3 * step < steps else "map"
    assert GRADUAL(step, steps) == expected


def test_inverted_thirds() -> None:
    assert [INVERTED(step, 6) for step in range(6)] == ["map", "map", "context", "context", "output", "output"]


@given(
    shares=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9), min_size=1),
    steps=st.integers(1, 500),
)
def test_shares_come_in_order_and_in_proportion(shares: dict[str, int], steps: int) -> None:
    schedule = PiecewiseSchedule(shares)
    sequence = [schedule(step, steps) for step in range(steps)]
    order = list(shares)
    assert [order.index(name) for name in sequence] == sorted(order.index(name) for name in sequence)
    for name, share in shares.items():
        assert abs(sequence.count(name) - steps * share / sum(shares.values())) < 1


@pytest.mark.parametrize("shares", [{}, {"map": 0}, {"map": -1}, {"map": 0.5}])
def test_impossible_shares_are_refused(shares: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="each with a positive whole number"):
        PiecewiseSchedule(shares)
    with pytest.raises(ValueError, match="names must hold at least one name"):
        RandomSchedule([])


def test_stochastic_is_a_function_of_seed_and_step() -> None:
    sequence = [RandomSchedule(NAMES, seed=3)(step, 60) for step in range(60)]
    backwards = [RandomSchedule(NAMES, seed=3)(step, 999) for step in reversed(range(60))]
    assert sequence == backwards[::-1]
    assert sequence != [RandomSchedule(NAMES, seed=4)(step, 60) for step in range(60)]


def test_stochastic_is_the_same_on_every_machine() -> None:
    # Python's random.Random seeded by a string is stable across versions; a resumed run relies on it
    first = [RandomSchedule(NAMES, seed=0)(step, 60) for step in range(8)]
    assert first == ["context", "map", "context", "map", "map", "context", "context", "map"]


def test_stochastic_is_roughly_uniform() -> None:
    counts = Counter(RandomSchedule(NAMES, seed=1)(step, 3000) for step in range(3000))
    # mean 1000, standard deviation 26
    assert set(counts) == set(NAMES)
    assert all(870 < count < 1130 for count in counts.values())


def test_warmup_by_hand() -> None:
    # 10 steps, 2 of warm-up: thirds up to the peak, then eighths down
    factors = [LinearWarmup(0.2)(step, 10) for step in range(10)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert [LinearWarmup()(step, 10) for step in (10, 11)] == [0, 0], "after the last step"
    assert [Constant()(step, 5) for step in range(5)] == [1.0] * 5


@given(steps=st.integers(1, 2000), warmup=st.floats(0, 0.99))
def test_warmup_never_stands_still_and_peaks_at_one(steps: int, warmup: float) -> None:
    """The papers' second stage ran its last steps at a rate of 0 (arXiv:2302.11812, released code)."""
    schedule = LinearWarmup(warmup)
    factors = [schedule(step, steps) for step in range(steps)]
    assert min(factors) > 0
    assert max(factors) == 1
    peak = factors.index(1)
    assert peak == int(warmup * steps)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


@pytest.mark.parametrize("warmup", [-0.1, 1.0, 10])
def test_impossible_warmup_is_refused(warmup: float) -> None:
    with pytest.raises(ValueError, match="is a share of the steps: 0 or more, less than 1"):
        LinearWarmup(warmup)
