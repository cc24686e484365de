"""The processes of one run end together, in bounded time and in words, where one of them is killed.

Between processes on CPUs a collective fails at once; between GPUs it waits for half an hour. So each process watches
the other end itself: Lightning's observer ends the first process when one that it started has died (without a word, and
with a signal that leaves no time for one), and here the others see the first one go.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from qat_lightning.compat import observed_processes
from qat_lightning.io.external_errors import same_command
from qat_lightning.io.screen import tell

FIRST = "QAT_LIGHTNING_FIRST_PROCESS"
"""The environment's name for the process that has started this one. (Its parent is no such sign: the parent of a process
whose own has died is another, and the first process of a container has the number that orphans are given.)"""

OBSERVER = "lightning.fabric.strategies.launchers.subprocess_script"
GRACE = 20.0
"""Seconds for a process to end by itself, with its own words, once the first one has gone."""

PRINTING = 5.0
"""Seconds for the message that says why."""

GONE = "the first process of this run has gone"


class _Words(logging.Handler):
    """What Lightning's observer notes just before it ends all processes."""

    def emit(self, record: logging.LogRecord) -> None:
        _tell("another process of this run has died")


def watch_the_others() -> None:
    """Begin to watch, before any process is started and once in each.

    Raises:
        SystemExit: the process that has started this one has gone since.
    """
    first = _started_by()
    if first is None:
        os.environ[FIRST] = str(os.getpid())
        observer = logging.getLogger(OBSERVER)
        if not any(isinstance(handler, _Words) for handler in observer.handlers):
            observer.addHandler(_Words())
        observer.setLevel(logging.INFO)
        observer.propagate = False
    elif not _is_there(first):
        _tell(GONE)
        raise SystemExit(1)
    elif not any(thread.name == FIRST for thread in threading.enumerate()):
        threading.Thread(target=_end_with, args=(first, GRACE), name=FIRST, daemon=True).start()


def leave_the_others() -> None:
    """End what an ended job of a sweep has started; Lightning's observer would end this process with it."""
    for thread in threading.enumerate():
        started = observed_processes(thread)
        if started:
            left = list(started)
            started.clear()  # before they end: the observer looks at this list
            for process in left:
                process.kill()
                process.wait()


def _started_by() -> int | None:
    """None for a process that Lightning has not started: torchrun, srun or a user look after theirs by themselves."""
    if int(os.environ.get("LOCAL_RANK") or 0) == 0 or "TORCHELASTIC_RUN_ID" in os.environ:
        return None
    first = int(os.environ.get(FIRST) or os.getpid())
    return None if first == os.getpid() else first


def _is_there(process: int, born: str = "") -> bool:
    """Whether it runs; one that has died does not, also where nobody has asked for its exit code yet.

    Args:
        born: its start time; another process that was given the number since does not count.
    """
    if os.getppid() == process:
        return True
    try:
        os.kill(process, 0)
    except OSError:
        return False  # or it is another user's, who was given the number since
    try:
        state = _facts(process)
    except OSError:
        return True  # a system without /proc
    return state[0] not in ("Z", "X") and born in ("", state[19])


def _facts(process: int) -> list[str]:
    """What /proc/<process>/stat says from the state on; the twentieth is the start time."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def _end_with(first: int, grace: float) -> None:
    """End this process some seconds after the one that started it has gone."""
    born = ""
    with suppress(OSError):
        born = _facts(first)[19]
    while _is_there(first, born):
        time.sleep(1.0)
    time.sleep(grace)
    last = threading.Timer(PRINTING, os._exit, [1])  # nobody may read what is printed, or a lock may be held
    last.daemon = True
    last.start()
    with suppress(OSError, ValueError):
        _tell(GONE)
    os._exit(1)  # a thread that waits in a collective cannot be asked to end


def _tell(what: str) -> None:
    tell(
        f"qat_lightning: {what}, so the run ends; if no message stands above it was killed, most often because memory ran"
        " out: give a smaller data.batch_size with as much more of trainer.accumulate_grad_batches. To continue:"
        f" {same_command('the same folder')}."
    )
