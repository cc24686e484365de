"""End the process in bounded time after a signal, even while a call waits forever and no Python handler can run.

Python runs signal handlers between two of its instructions; a process that waits for another one (rendezvous, collective)
executes none. The interpreter writes each signal to a pipe at once (`signal.set_wakeup_fd`), and a thread reads it.
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
from qat_lightning.io.external_errors import STOP_SIGNALS, explain, same_command

PATIENCE = 60.0
"""Seconds for a signal's handler to run. Handlers run between two operations, and no single operation takes this long."""

ECHO = 5.0
"""Seconds within which another signal repeats the first: torchrun passes on what all processes have received already."""

WORKER_PATIENCE = 30.0
"""Seconds for the training process to notice the death of a loader worker. torch's handler raises once; the exception can be
lost in a destructor or a fork, and no handler runs in a call that waits."""

CHILD_ENDED = getattr(signal, "SIGCHLD", None)
CLOSE = 0


class Watchdog:
    """End the process at a stop signal that is not handled within `patience` seconds, and at a second stop signal.

    A second SIGINT counts at any time; other signals after `echo` seconds, within which they repeat the first.
    """

    def __init__(self, patience: float = PATIENCE, echo: float = ECHO) -> None:
        self.patience, self.echo = patience, echo
        self._handled, self._first_signal = False, 0.0
        self._pipe: tuple[int, int] | None = None
        self._wakeup_before = -1
        self._started, self._child_ended, self._checking = 0.0, 0.0, False

    def __enter__(self) -> Watchdog:
        if threading.current_thread() is threading.main_thread():  # Python allows no other thread to watch signals
            _detach_forked_processes()
            self._handled, self._first_signal, self._started = False, 0.0, time.monotonic()
            self._pipe = reader, writer = os.pipe()
            os.set_blocking(writer, False)
            self._wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._pipe is not None:
            self.confirm_handled()
            signal.set_wakeup_fd(self._wakeup_before)
            os.write(self._pipe[1], bytes([CLOSE]))
            os.close(self._pipe[1])
            self._pipe = None

    def confirm_handled(self) -> None:
        """Record that the signal's handler has run and the program ends by itself, however long that takes."""
        self._handled = True

    def _watch(self, reader: int) -> None:
        while number := os.read(reader, 1)[0]:
            now = time.monotonic()
            if number == CHILD_ENDED:
                self._child_ended = now
                if not self._checking:
                    self._checking = True
                    _call_later(WORKER_PATIENCE, self._check_workers)
            elif number in STOP_SIGNALS and not self._first_signal:
                self._first_signal = now
                _call_later(self.patience, self._check_handled, number)
            elif number == signal.SIGINT or (number in STOP_SIGNALS and now - self._first_signal >= self.echo):
                _end_now(number, "received a second stop signal")
        os.close(reader)

    def _check_handled(self, number: int) -> None:
        if not self._handled:
            _end_now(number, f"received a stop signal {self.patience:.0f} seconds ago and is still in the same call")

    def _check_workers(self) -> None:
        """End the process if a loader worker was killed and nothing has happened since the last child ended."""
        remaining = self._child_ended + WORKER_PATIENCE - time.monotonic()
        if remaining > 0 and not self._handled:
            _call_later(remaining, self._check_workers)
            return
        self._checking = False
        if (killed := killed_worker(self._started)) and not self._handled:
            _write_error(f"qat_lightning: {explain(RuntimeError(killed))}\n")
            os._exit(1)


def _call_later(seconds: float, call: Callable[..., None], *arguments: Any) -> None:
    timer = threading.Timer(seconds, call, arguments)
    timer.daemon = True
    timer.start()


def _end_now(number: int, reason: str) -> None:
    _write_error(
        f"qat_lightning: this process {reason} ({signal.Signals(number).name}), so it ends now, without a checkpoint;"
        f" {same_command('the same folder')} continues from the last saved state\n"
    )
    os._exit(128 + number)


def _write_error(text: str) -> None:
    with suppress(OSError):
        os.write(2, text.encode())  # not sys.stderr: a thread that waits forever may have its lock


@cache
def _detach_forked_processes() -> None:
    """Keep forked loader workers from writing their own signals to the inherited pipe."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
