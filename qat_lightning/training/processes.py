"""The processes of one run end together, in bounded time and in words, where one of them is killed.

Between processes on CPUs a collective fails at once; between GPUs it waits for half an hour. So each process watches
the other end itself: Lightning's observer ends the first process when one that it started has died (without a word, and
with a signal that leaves no time for one), and here the others see the first one go.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time

OBSERVER = "lightning.fabric.strategies.launchers.subprocess_script"
GRACE = 20.0
"""Seconds for a process to end by itself, with its own words, once the first one has gone."""


class _Words(logging.Handler):
    """What Lightning's observer notes just before it ends all processes."""

    def emit(self, record: logging.LogRecord) -> None:
        _tell("another process of this run has died")


def watch_the_others(rank: int) -> None:
    """Begin to watch, once in each process."""
    if rank == 0:
        observer = logging.getLogger(OBSERVER)
        if not any(isinstance(handler, _Words) for handler in observer.handlers):
            observer.addHandler(_Words())
        observer.setLevel(logging.INFO)
        observer.propagate = False
    else:
        threading.Thread(target=_end_with, args=(os.getppid(), GRACE), daemon=True).start()


def _end_with(parent: int, grace: float) -> None:
    """End this process some seconds after the one that started it has gone."""
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(grace)
    _tell("the first process of this run has gone")
    os._exit(1)  # a thread that waits in a collective cannot be asked to end


def _tell(what: str) -> None:
    print(
        f"qat_lightning: {what}, so the run ends; if no message stands above it was killed, most often because memory ran"
        " out: give a smaller data.batch_size with as much more of trainer.accumulate_grad_batches. The same command with"
        " the same hydra.run.dir goes on.",
        file=sys.stderr,
        flush=True,
    )
