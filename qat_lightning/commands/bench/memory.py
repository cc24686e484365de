"""Count the bytes that a call allocates; the result is the same in every run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler logs when it starts and stops


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
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(sizes.values())


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
