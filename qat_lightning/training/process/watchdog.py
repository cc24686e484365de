"""A signal ends the program in bounded time, also where no handler can see it: in a call that waits for ever.

Python's handlers run between two of its own instructions; a process that waits for another one (a rendezvous, a
collective) comes to none. But the interpreter writes each signal to a pipe at once (`signal.set_wakeup_fd`), and a
thread reads it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

from qat_lightning.data.loader_workers import killed_worker
from qat_lightning.io.external_errors import explained, same_command
from qat_lightning.training.process.signals import ASKING

PATIENCE = 60.0
"""Seconds for a signal to be heeded. A validation of minutes heeds one in milliseconds, between two operations; this is
for a single operation, which takes no such time."""

ECHO = 5.0
"""Seconds within which a signal is the first one's echo: torchrun passes on what all processes have been sent already."""

WORKER = 30.0
"""Seconds for the death of a process that loads data to be noticed by the one that waits for its batches. torch's handler
raises once and at once, but what it raises may be lost (in a destructor, in a fork), and none runs in a call that waits."""

CHILD = getattr(signal, "SIGCHLD", None)
END = 0


class Watchdog:
    """`with Watchdog() as watchdog:` a signal that nobody has heeded after some seconds ends the process, as does a second.

    A second one: SIGINT at any time after the first, others when they are no echo.
    """

    def __init__(self, patience: float = PATIENCE, echo: float = ECHO) -> None:
        self.patience, self.echo = patience, echo
        self._heeded, self._first = False, 0.0
        self._pipe: tuple[int, int] | None = None
        self._before = -1
        self._since, self._child_ended, self._checking = 0.0, 0.0, False

    def __enter__(self) -> Watchdog:
        if threading.current_thread() is threading.main_thread():  # Python allows no other one to look at signals
            _forked_without_the_pipe()
            self._heeded, self._first, self._since = False, 0.0, time.monotonic()
            self._pipe = reader, writer = os.pipe()
            os.set_blocking(writer, False)
            self._before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._pipe is not None:
            self.heeded()
            signal.set_wakeup_fd(self._before)
            os.write(self._pipe[1], bytes([END]))
            os.close(self._pipe[1])
            self._pipe = None

    def heeded(self) -> None:
        """The signal's handler has run, and the program will come to an end by itself, however long that takes."""
        self._heeded = True

    def _watch(self, reader: int) -> None:
        while number := os.read(reader, 1)[0]:
            now = time.monotonic()
            if number == CHILD:
                self._child_ended = now
                if not self._checking:
                    self._checking = True
                    _later(WORKER, self._check_workers)
            if number not in ASKING:
                continue
            if not self._first:
                self._first = now
                _later(self.patience, self._unheeded, number)
            elif number == signal.SIGINT or now - self._first >= self.echo:
                end_at_once(number, "asked once more to stop")
        os.close(reader)

    def _unheeded(self, number: int) -> None:
        if not self._heeded:
            end_at_once(number, f"asked to stop {self.patience:.0f} seconds ago, and still in the same call")

    def _check_workers(self) -> None:
        """Ask whether a process that loads data has died, and nothing was done about it, some time after the last has ended."""
        rest = self._child_ended + WORKER - time.monotonic()
        if rest > 0 and not self._heeded:
            _later(rest, self._check_workers)
            return
        self._checking = False
        if (killed := killed_worker(self._since)) and not self._heeded:
            with suppress(OSError):
                os.write(2, f"qat_lightning: {explained(RuntimeError(killed))}\n".encode())
            os._exit(1)


def _later(seconds: float, call: Callable[..., None], *arguments: Any) -> None:
    timer = threading.Timer(seconds, call, arguments)
    timer.daemon = True
    timer.start()


def end_at_once(number: int, why: str) -> None:
    """Nothing is written any more; what was saved before is whole."""
    words = (
        f"qat_lightning: {why} ({signal.Signals(number).name}), so this process ends now, without a checkpoint;"
        f" {same_command('the same folder')} continues from what was saved before\n"
    )
    with suppress(OSError):
        os.write(2, words.encode())  # not sys.stderr, whose lock may be held by a thread that waits for ever
    os._exit(128 + number)


@cache
def _forked_without_the_pipe() -> None:
    """A process that loads data would write its own signals to the pipe that it has inherited."""
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
