"""Seconds of several calls, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy

Name = TypeVar("Name", bound=Hashable)
Call = Callable[[], Any]


@dataclass(frozen=True)
class Spread:
    """Seconds: the median, and what 10 % and 90 % of the calls stayed below."""

    median: float
    low: float
    high: float


def spread(seconds: Sequence[float]) -> Spread:
    """Between two calls, what lies between them in proportion."""
    low, median, high = numpy.quantile(seconds, (0.1, 0.5, 0.9)).tolist()
    return Spread(median, low, high)


def side_by_side(
    calls: Mapping[Name, Call],
    rounds: int,
    warmup: int,
    untimed: int = 1,
    say: Callable[[str], None] | None = None,
) -> dict[Name, Spread]:
    """Time every call once a round, so that what else the machine does falls on all of them alike.

    Each round begins with another call: none is always first.

    Args:
        warmup: rounds before those that count.
        untimed: calls in front of each timed one. The caches hold what the call before has left, and its threads still
            wait for more work; one call of its own, and a runtime is timed as in steady use.
        say: told at the head of each round.
    """
    names = list(calls)
    seconds: dict[Name, list[float]] = {name: [] for name in names}
    for number in range(warmup + rounds):
        if say is not None:
            say(f"round {number + 1} of {warmup + rounds}")
        first = number % len(names)
        for name in names[first:] + names[:first]:
            for _ in range(untimed):
                calls[name]()
            took = _timed(calls[name])
            if number >= warmup:
                seconds[name].append(took)
    return {name: spread(each) for name, each in seconds.items()}


def _timed(call: Call) -> float:
    start = time.perf_counter()
    result = call()
    took = time.perf_counter() - start
    del result  # not within the time: a model takes a while to vanish
    return took
