"""Seconds of several calls, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy

Name = TypeVar("Name", bound=Hashable)
Call = Callable[[], Any]
Around = Callable[[], AbstractContextManager[Any]]
Clock = Literal["wall", "processor"]


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
    """The spread of `seconds_side_by_side`, with the same arguments."""
    return {name: spread(each) for name, each in seconds_side_by_side(calls, rounds, warmup, untimed, say).items()}


def seconds_side_by_side(
    calls: Mapping[Name, Call],
    rounds: int,
    warmup: int,
    untimed: int = 1,
    say: Callable[[str], None] | None = None,
    clock: Clock = "wall",
    around: Mapping[Name, Around] | None = None,
) -> dict[Name, list[float]]:
    """Time every call once a round, so that what else the machine does falls on all of them alike.

    Each round begins with another call: none is always first.

    Args:
        warmup: rounds before those that count.
        untimed: calls in front of each timed one. The caches hold what the call before has left, and its threads still
            wait for more work; one call of its own, and a runtime is timed as in steady use.
        say: told at the head of each round.
        clock: "processor" counts what this process computes, on all its threads, so other programs add little to it; but
            neither the work of a device nor what two threads save.
        around: what is entered before the untimed calls, and left after the timed one.
    """
    names = list(calls)
    seconds: dict[Name, list[float]] = {name: [] for name in names}
    for number in range(warmup + rounds):
        if say is not None:
            say(f"round {number + 1} of {warmup + rounds}")
        first = number % len(names)
        for name in names[first:] + names[:first]:
            with (around or {}).get(name, nullcontext)():
                for _ in range(untimed):
                    calls[name]()
                took = _timed(calls[name], clock)
            if number >= warmup:
                seconds[name].append(took)
    return seconds


def _timed(call: Call, clock: Clock) -> float:
    now = time.perf_counter if clock == "wall" else time.process_time
    start = now()
    result = call()
    took = now() - start
    del result  # not within the time: a model takes a while to vanish
    return took
