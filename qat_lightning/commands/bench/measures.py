"""Time several calls in turns, and count the bytes that a call allocates.

`torch.utils.benchmark.Timer` measures one call after the other; a machine's speed changes within minutes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import numpy
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler logs when it starts and stops

Name = TypeVar("Name", bound=Hashable)
Context = Callable[[], AbstractContextManager[Any]]
Report = Callable[[str], None]
"""Shows one line of progress in place of the line before."""


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median and the 10 % and 90 % quantiles, linearly interpolated.

    >>> spread([2.0, 4.0])["median"]
    3.0
    """
    return dict(zip(("median", "low", "high"), numpy.quantile(seconds, (0.5, 0.1, 0.9)).tolist(), strict=True))


def time_interleaved(
    calls: Mapping[Name, Callable[[], Any]],
    rounds: int,
    warmup: int,
    untimed: int = 1,
    report: Report = lambda line: None,
    clock: str = "wall",
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
        report(f"timing: round {number + 1} of {warmup + rounds} …")
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


def peak_bytes(step: Callable[[], Any], device: torch.device) -> int:
    """Return the largest number of bytes that torch held during `step` beyond those before it.

    On CUDA this is the allocator's own figure. On a CPU it is the running sum of torch's allocations and releases, from the
    profiler; memory that other libraries allocate is not included.
    """
    return _allocated(step, device)[0]


def saved_bytes(forward: Callable[[], Tensor], device: torch.device) -> int:
    """Return the bytes that `forward` keeps for its backward pass."""
    return _allocated(forward, device)[1]


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the tensors' memory; memory that several tensors share counts once.

    >>> tensor = torch.zeros(8)
    >>> storage_bytes([tensor, tensor[2:], tensor.view(2, 4)])
    32
    """
    return sum({(memory := tensor.untyped_storage()).data_ptr(): memory.nbytes() for tensor in tensors}.values())


def _allocated(call: Callable[[], Any], device: torch.device) -> tuple[int, int]:
    """Return the peak, and the bytes at the end of the call while its result is alive."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        torch.cuda.synchronize(device)
        peak, last = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
        del result
        return peak - before, last - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = call()
    del result
    profiler: Any = profiled.profiler
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak, held
