"""The order of calls and the timed seconds, on a clock that the calls advance."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from qat_lightning.commands.bench import timing
from qat_lightning.commands.bench.timing import Spread, spread, time_interleaved


class Clock:
    """`calls(name)` returns a call that takes 1 second the first time, 2 the second, …, times `pace`."""

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
    times = SimpleNamespace(perf_counter=lambda: clock.now, process_time=lambda: clock.now / 10)
    monkeypatch.setattr(timing, "time", times)
    return clock


def test_spread():
    assert spread([5, 1, 11, 4, 3, 2, 7, 6, 10, 9, 8]) == Spread(median=6, low=2, high=10)
    assert spread([0.5]) == Spread(0.5, 0.5, 0.5)


def test_warmup_and_untimed_calls_are_not_counted(clock):
    """Calls 1 and 2 are the warm-up; then 3, 5, 7 are untimed and 4, 6, 8 timed."""
    found = time_interleaved({"one": clock.calls("one"), "other": clock.calls("other", pace=2)}, rounds=3, warmup=1)
    assert found == {"one": [4, 6, 8], "other": [8, 12, 16]}


def test_rounds_are_interleaved_and_each_begins_with_another_call(clock):
    lines = []
    time_interleaved({name: clock.calls(name) for name in "abc"}, 3, warmup=1, untimed=0, report=lines.append)
    assert "".join(clock.order) == "abc" + "bca" + "cab" + "abc"
    assert lines == [f"round {number} of 4" for number in (1, 2, 3, 4)]


def test_processor_time_is_another_clock(clock):
    found = time_interleaved({"one": clock.calls("one")}, rounds=3, warmup=0, untimed=0, clock="processor")
    assert found["one"] == pytest.approx([0.1, 0.2, 0.3])


def test_releasing_the_result_is_not_timed(clock):
    class Heavy:
        def __del__(self):
            clock.now += 100

    assert time_interleaved({"one": Heavy}, rounds=2, warmup=0) == {"one": [0, 0]}
    assert clock.now == 400


def test_the_context_of_a_call_contains_its_untimed_calls():
    entries = []

    @contextmanager
    def context():
        entries.append("in")
        yield
        entries.append("out")

    calls = {"own": lambda: entries.append("own"), "other": lambda: entries.append("other")}
    time_interleaved(calls, rounds=1, warmup=0, untimed=1, contexts={"own": context})
    assert entries == ["in", "own", "own", "out", "other", "other"]
