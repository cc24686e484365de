"""Processes that load data: their signals, and the detection of killed ones."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing import context
from typing import Any
from weakref import WeakSet

FORK_PROCESS: Any = getattr(context, "ForkProcess", context.Process)
FORK_CONTEXT: Any = getattr(context, "ForkContext", context.BaseContext)
"""Windows cannot fork; its loaders have the default context."""

_STARTED: WeakSet[LoadingProcess] = WeakSet()
"""Processes that a loader still refers to."""

_LOCK = threading.Lock()

WATCH = 5.0
"""Seconds between two checks of the parent process."""


class LoadingProcess(FORK_PROCESS):
    """A process that loads data and ends some seconds after its parent.

    torch's own worker looks up its parent when it starts: if the parent was killed before, the worker never ends.
    """

    def start(self) -> None:
        """Start the process and register it."""
        self.began, self.starter = time.monotonic(), os.getpid()
        with _LOCK:
            _STARTED.add(self)
        super().start()

    def run(self) -> None:
        """Load data, and watch the parent process."""
        threading.Thread(target=_end_with_parent, args=(self.starter,), daemon=True).start()
        super().run()


def _end_with_parent(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(WATCH)
    os._exit(1)


class LoadingContext(FORK_CONTEXT):
    """A fork context whose processes are `LoadingProcess`."""

    Process = LoadingProcess


def loading_context(workers: int) -> context.BaseContext | None:
    """Return the context of a loader with `workers` processes; None for the default context, without fork or workers."""
    return LoadingContext() if workers and multiprocessing.get_start_method() == "fork" else None


def killed_worker(since: float) -> str:
    """Describe how a loading process ended whose batches are still expected; "" if none did.

    Args:
        since: earliest start of the processes, by `time.monotonic`.
    """
    with _LOCK:
        ended = [(process.pid, process.exitcode) for process in _STARTED if process.pid and process.began >= since]
    for pid, code in ended:
        if code not in (None, 0, -signal.SIGTERM):  # a loader ends its processes by SIGTERM
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            return f"DataLoader worker (pid {pid}) was {how}"
    return ""


def ignore_first_sigterm(worker: int) -> None:
    """Ignore the first SIGTERM, which a signal to the process group sends: the parent process decides when to end."""
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
