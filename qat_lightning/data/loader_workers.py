"""The processes that load data: their signals, and which of them has been killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.context import BaseContext, ForkContext, ForkProcess
from weakref import WeakSet

_STARTED: WeakSet[LoadingProcess] = WeakSet()
"""Those that somebody still waits for: a loader keeps its own until it is through."""

_LOCK = threading.Lock()

WATCH = 5.0
"""Seconds between two looks at the process that needs the data."""


class LoadingProcess(ForkProcess):
    """A process that loads data; it ends some seconds after the one that started it, however that ended.

    (torch's own worker asks for its parent first when it has begun: one whose parent was killed until then never ends.)
    """

    def start(self) -> None:
        """Start it, and keep it in mind."""
        self.began, self.starter = time.monotonic(), os.getpid()
        with _LOCK:
            _STARTED.add(self)
        super().start()

    def run(self) -> None:
        """Load data, and watch the process that needs them."""
        threading.Thread(target=_end_with, args=(self.starter,), daemon=True).start()
        super().run()


def _end_with(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(WATCH)
    os._exit(1)


class LoadingContext(ForkContext):
    """Makes processes that load data."""

    Process = LoadingProcess


def loading_context(workers: int) -> BaseContext | None:
    """Return the context of a loader with so many processes; None for the usual one, where it does not fork or has none."""
    return LoadingContext() if workers and multiprocessing.get_start_method() == "fork" else None


def killed_worker(since: float) -> str:
    """Return what has ended a loading process whose batches are waited for; empty where all are well or through.

    Args:
        since: the time (`time.monotonic`) from which on they were started.
    """
    with _LOCK:
        ended = [(process.pid, process.exitcode) for process in _STARTED if process.pid and process.began >= since]
    for pid, code in ended:
        if code not in (None, 0, -signal.SIGTERM):  # a loader ends its own by SIGTERM
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            return f"DataLoader worker (pid {pid}) was {how}"
    return ""


def outlive(worker: int) -> None:
    """A signal to the whole group leaves a worker at work: its process decides when to end. A second one ends it."""
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
