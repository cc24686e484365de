"""The order of calls and the seconds on a clock that the calls advance; counted bytes against sums by hand."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from qat_lightning.commands.bench import measures
from qat_lightning.commands.bench.measures import peak_bytes, saved_bytes, spread, time_interleaved

CPU = torch.device("cpu")
MEBIBYTE = 2**20
FLOATS = MEBIBYTE // 4


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
    monkeypatch.setattr(measures, "time", times)
    return clock


def test_spread():
    assert spread([5, 1, 11, 4, 3, 2, 7, 6, 10, 9, 8]) == {"median": 6, "low": 2, "high": 10}


def test_warmup_and_untimed_calls_are_not_counted(clock):
    """Calls 1 and 2 are the warm-up; then 3, 5, 7 are untimed and 4, 6, 8 timed."""
    found = time_interleaved({"one": clock.calls("one"), "other": clock.calls("other", pace=2)}, rounds=3, warmup=1)
    assert found == {"one": [4, 6, 8], "other": [8, 12, 16]}


def test_rounds_are_interleaved_and_each_begins_with_another_call(clock):
    lines = []
    time_interleaved({name: clock.calls(name) for name in "abc"}, 3, warmup=1, untimed=0, report=lines.append)
    assert "".join(clock.order) == "abc" + "bca" + "cab" + "abc"
    assert lines == [f"timing: round {number} of 4 …" for number in (1, 2, 3, 4)]


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


def test_the_peak_is_the_largest_sum_at_one_time():
    """1, 1 + 2, 2, 2 + 4, 4 MiB: at most 6, though 7 are allocated in all."""

    def step():
        first = torch.empty(FLOATS)
        second = torch.empty(2 * FLOATS)
        del first
        third = torch.empty(4 * FLOATS)
        del second
        return third

    assert [peak_bytes(step, CPU) for _ in range(2)] == [6 * MEBIBYTE] * 2


def test_memory_inside_an_operator_is_counted():
    """A sum in float64 copies its float32 values; no operator returns the copy."""
    values = torch.ones(FLOATS)
    assert 2 * MEBIBYTE <= peak_bytes(lambda: values.sum(dtype=torch.float64), CPU) < 2.1 * MEBIBYTE
    assert peak_bytes(lambda: values.sum(), CPU) < 0.1 * MEBIBYTE


def test_saved_bytes():
    """x·w saves both, which existed before; exp saves its result, once; hooks of its own decide how."""
    x, weight = torch.ones(FLOATS), torch.ones(FLOATS, requires_grad=True)

    def twice():
        result = (x * weight).exp()
        return (result * result[:1]).sum() + result.sum()

    def half():
        with saved_tensors_hooks(lambda saved: saved.half(), lambda saved: saved.float()):
            return weight.exp().sum()

    assert saved_bytes(lambda: (weight + 1).sum(), CPU) <= 1024
    assert saved_bytes(lambda: (x * weight).exp().sum(), CPU) == pytest.approx(MEBIBYTE, abs=1024)
    assert saved_bytes(lambda: ((x + 1) * weight).exp().sum(), CPU) == pytest.approx(2 * MEBIBYTE, abs=1024)
    assert saved_bytes(twice, CPU) == pytest.approx(MEBIBYTE, abs=1024)
    assert saved_bytes(half, CPU) == pytest.approx(MEBIBYTE / 2, abs=1024)
