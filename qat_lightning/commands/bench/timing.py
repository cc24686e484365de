"""Time several calls in turns, so that they are compared under the same conditions.

`torch.utils.benchmark.Timer` makes two more calls before each measurement and measures one call after the other; a training
step takes seconds, and a machine's speed changes within minutes. So calls are interleaved here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy
import torch

Name = TypeVar("Name", bound=Hashable)
Call = Callable[[], Any]
Context = Callable[[], AbstractContextManager[Any]]
Clock = Literal["wall", "processor"]
Report = Callable[[str], None]
"""Shows one line of progress in place of the line before."""


@dataclass(frozen=True)
class Spread:
    """Seconds: the median, and the 10 % and 90 % quantiles."""

    median: float
    low: float
    high: float


def spread(seconds: Sequence[float]) -> Spread:
    """Return the quantiles, linearly interpolated.

    >>> spread([2.0, 4.0]).median
    3.0
    """
    low, median, high = numpy.quantile(seconds, (0.1, 0.5, 0.9)).tolist()
    return Spread(median, low, high)


def time_interleaved(
    calls: Mapping[Name, Call],
    rounds: int,
    warmup: int,
    untimed: int = 1,
    report: Report = lambda line: None,
    clock: Clock = "wall",
    contexts: Mapping[Name, Context] | None = None,
) -> dict[Name, list[float]]:
    """Time every call once in each round and return its seconds; each round begins with another call.

    Args:
        warmup: rounds that do not count, before the others.
        untimed: calls before each timed one. The caches hold the data of the previous call, whose threads may still wait for
            work; after one call of its own a runtime is timed as in steady use.
        clock: "processor" counts the time that all threads of this process compute. Other programs affect it little, but it
            contains neither the work of a device nor the gain of several threads.
        contexts: entered before the untimed calls and left after the timed one.
    """
    names = list(calls)
    seconds: dict[Name, list[float]] = {name: [] for name in names}
    timer = time.perf_counter if clock == "wall" else time.process_time
    for number in range(warmup + rounds):
        report(f"round {number + 1} of {warmup + rounds}")
        first = number % len(names)
        for name in names[first:] + names[:first]:
            with (contexts or {}).get(name, nullcontext)():
                for _ in range(untimed):
                    calls[name]()
                start = timer()
                result = calls[name]()
                took = timer() - start
                del result  # after the measurement: releasing a model takes a while
            if number >= warmup:
                seconds[name].append(took)
    return seconds


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Set the number of torch's threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
