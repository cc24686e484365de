"""Bytes that a step takes, counted and not sampled: the same in every run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells of each beginning and end


def peak_bytes(step: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that torch held during `step` beyond those before it.

    On CUDA what its allocator says; on a CPU the running sum of torch's own allocations and releases, from the profiler
    (what libraries take beside torch's allocator is not in it).
    """
    return _held(step, device)[0]


def saved_bytes(forward: Callable[[], Tensor], device: torch.device) -> int:
    """Bytes that `forward` leaves behind for its backward pass, counted as `peak_bytes` does, however they are saved."""
    return _held(forward, device)[1]


def _held(call: Callable[[], Any], device: torch.device) -> tuple[int, int]:
    """Bytes beyond those before: the most that were held, and those that are when all but the result is gone."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        torch.cuda.synchronize(device)
        most, last = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
        del result
        return most - before, last - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = call()
    del result
    results: Any = profiled.profiler
    noted = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(noted, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most, held


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Address → bytes of each storage."""
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
