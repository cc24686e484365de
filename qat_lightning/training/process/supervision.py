"""End all processes of one run, with a message and in bounded time, when one of them is killed.

Between CPU processes a collective fails at once; between GPUs it waits for half an hour. So the processes watch each other:
Lightning's observer ends the first process when one that it has started has died, and here the others watch the first.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress

from qat_lightning.compat import observed_processes
from qat_lightning.io.external_errors import same_command
from qat_lightning.io.screen import tell

FIRST = "QAT_LIGHTNING_FIRST_PROCESS"
"""Environment variable with the number of the process that starts the others; it is their parent while it lives."""

OBSERVER_LOGGER = "lightning.fabric.strategies.launchers.subprocess_script"

GRACE = 20.0
"""Seconds that a process has to end with its own message after the first process has died."""

PRINTING = 5.0
"""Seconds that printing the message may take."""

FIRST_DIED = "the first process of this run has died"


class _ObserverMessage(logging.Handler):
    """Print a message when Lightning's observer logs that it ends all processes."""

    def emit(self, record: logging.LogRecord) -> None:
        _print_reason("another process of this run has died")


def watch_processes() -> None:
    """Start watching the other processes. Call this once in each process, before any other is started.

    Raises SystemExit if the process that started this one has died since.
    """
    first = _starting_process()
    if first is None:
        os.environ[FIRST] = str(os.getpid())
        observer = logging.getLogger(OBSERVER_LOGGER)
        if not any(isinstance(handler, _ObserverMessage) for handler in observer.handlers):
            observer.addHandler(_ObserverMessage())
        observer.setLevel(logging.INFO)
        observer.propagate = False
    elif os.getppid() != first:
        try:
            os.kill(first, 0)  # one that exists is an outer program's, which has not started this process
        except OSError:
            _print_reason(FIRST_DIED)
            raise SystemExit(1) from None
    elif not any(thread.name == FIRST for thread in threading.enumerate()):
        threading.Thread(target=_end_after, args=(first, GRACE), name=FIRST, daemon=True).start()


def end_started_processes() -> None:
    """End the processes that a job of a sweep has started, before Lightning's observer ends this process with them."""
    for thread in threading.enumerate():
        started = observed_processes(thread)
        processes = list(started)
        started.clear()  # first, because the observer looks at this list
        for process in processes:
            process.kill()
            process.wait()


def _starting_process() -> int | None:
    """Return the process that started this one; None for the first process and under torchrun, which watches its own."""
    if int(os.environ.get("LOCAL_RANK") or 0) == 0 or "TORCHELASTIC_RUN_ID" in os.environ:
        return None
    first = int(os.environ.get(FIRST) or os.getpid())
    return None if first == os.getpid() else first


def _end_after(first: int, grace: float) -> None:
    """End this process some seconds after the first one has died."""
    while os.getppid() == first:
        time.sleep(1.0)
    time.sleep(grace)
    timer = threading.Timer(PRINTING, os._exit, [1])  # printing can block: nobody reads, or another thread has the lock
    timer.daemon = True
    timer.start()
    with suppress(OSError, ValueError):
        _print_reason(FIRST_DIED)
    os._exit(1)  # a thread that waits in a collective cannot be interrupted


def _print_reason(what: str) -> None:
    tell(
        f"qat_lightning: {what}, so the run ends. If there is no message above, it was killed, most often because memory"
        " ran out: set a smaller data.batch_size and increase trainer.accumulate_grad_batches by the same factor. To"
        f" continue, run {same_command('the same folder')}."
    )
