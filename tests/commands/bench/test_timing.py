"""Which calls are timed, in which order, and what is made of the seconds; on a clock that the calls themselves turn."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from qat_lightning.commands.bench import timing
from qat_lightning.commands.bench.timing import Spread, seconds_side_by_side, side_by_side, spread


class Clock:
    """`calls(name)` gives a call that takes 1 second the first time, 2 the second, …, times `pace`."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def calls(self, name, pace=1.0):
        def call():
            self.order.append(name)
            self.now += pace * self.order.count(name)

        return call


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_spread_by_hand():
    assert spread([5, 1, 11, 4, 3, 2, 7, 6, 10, 9, 8]) == Spread(median=6, low=2, high=10)
    assert spread([4.0, 2.0]) == Spread(median=3, low=2.2, high=3.8)
    assert spread([0.5]) == Spread(0.5, 0.5, 0.5)


def test_every_second_call_of_the_rounds_that_count_is_timed(clock):
    """Calls 1, 2 are the warm-up's; then 3, 5, 7 are untimed and 4, 6, 8 are timed, at twice the pace for the other."""
    found = side_by_side({"one": clock.calls("one"), "other": clock.calls("other", pace=2)}, rounds=3, warmup=1)
    assert found["one"] == spread([4, 6, 8])
    assert found["other"] == spread([8, 12, 16])


def test_rounds_are_interleaved_and_begin_with_another_call_each(clock):
    side_by_side({name: clock.calls(name) for name in "abc"}, rounds=3, warmup=1, untimed=0)
    assert "".join(clock.order) == "abc" + "bca" + "cab" + "abc"


def test_each_round_is_told(clock):
    told = []
    side_by_side({"one": clock.calls("one")}, rounds=2, warmup=1, say=told.append)
    assert told == ["round 1 of 3", "round 2 of 3", "round 3 of 3"]


def test_without_untimed_calls_every_call_counts(clock):
    assert side_by_side({"one": clock.calls("one")}, rounds=3, warmup=0, untimed=0) == {"one": spread([1, 2, 3])}


def test_processor_time_is_another_clock(clock, monkeypatch):
    """It stands still while a call waits: of the 1, 2, 3 seconds of this one it counts a tenth."""
    monkeypatch.setattr(timing.time, "process_time", lambda: clock.now / 10, raising=False)
    found = seconds_side_by_side({"one": clock.calls("one")}, rounds=3, warmup=0, untimed=0, clock="processor")
    assert found["one"] == pytest.approx([0.1, 0.2, 0.3])


def test_what_a_call_leaves_behind_is_dropped_outside_of_the_time(clock):
    class Heavy:
        def __del__(self):
            clock.now += 100

    assert side_by_side({"one": Heavy}, rounds=2, warmup=0)["one"].high == 0
    assert clock.now == 400


def test_what_is_around_a_call_is_not_timed_and_holds_for_the_untimed_ones():
    noted = []

    @contextmanager
    def around():
        noted.append("in")
        yield
        noted.append("out")

    calls = {"own": lambda: noted.append("own"), "other": lambda: noted.append("other")}
    seconds_side_by_side(calls, rounds=1, warmup=0, untimed=1, around={"own": around})
    assert noted == ["in", "own", "own", "out", "other", "other"]
