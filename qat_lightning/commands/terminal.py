"""Signals that ask the program to stop, and output streams that survive a closed pipe or a terminal without Unicode.

This module imports no torch, so that the command line starts fast.
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from types import FrameType
from typing import Any, TextIO

from qat_lightning.io.external_errors import STOP_SIGNALS

READER_GONE = (errno.EPIPE, errno.EIO)
"""Errors of a pipe without a reader and of a closed terminal."""


class EndedBySignal(SystemExit):
    """The end of the program by a signal outside of training, where there is nothing to save; exit code 128 + signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Let the first stop signal raise an exception, as Ctrl-C does, and a second one end the program at once.

    Signals that the program was started to ignore stay ignored. Python allows handlers in the main thread only; in
    another thread this does nothing.
    """
    process, received = os.getpid(), False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal received
        forked = os.getpid() != process  # a loader worker: the process that needs its data ends it
        if forked or received:
            signal.signal(number, signal.SIG_DFL)
        if received and not forked:
            os.kill(process, number)
        elif not forked:
            received = True
            raise KeyboardInterrupt if number == signal.SIGINT else EndedBySignal(number)

    main = threading.current_thread() is threading.main_thread()
    numbers = [number for number in STOP_SIGNALS if main and signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if main and hasattr(signal, "SIGCHLD"):
            # torch's handler would raise while the interpreter exits if the same signal has ended a loader worker
            atexit.register(signal.signal, signal.SIGCHLD, signal.SIG_DFL)


@contextmanager
def robust_streams() -> Iterator[None]:
    """Keep the program running when nobody reads its output any more (`… | head -1`, a closed terminal)."""
    with redirect_stdout(_robust(sys.stdout)), redirect_stderr(_robust(sys.stderr)):
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):
                    stream.flush()


class _Unbuffered(io.BufferedWriter):
    """A writer that flushes at once, as PYTHONUNBUFFERED=1 asks, so that the order of two streams is kept."""

    def write(self, data: Any) -> int:
        written = super().write(data)
        self.flush()
        return written


class _RobustFile(io.FileIO):
    """A file that becomes the null device, also for child processes, once nobody reads it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in READER_GONE:
                raise
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return len(data)


def _robust(stream: TextIO | None) -> TextIO:
    """Return the stream on a robust file; a stream that is not on a file of the system is returned unchanged."""
    if stream is None:  # closed before the program was started
        return open(os.devnull, "w")
    if type(stream) is not io.TextIOWrapper:
        return stream
    try:
        stream.flush()
        file = _RobustFile(stream.fileno(), "w", closefd=False)
    except OSError:
        return stream
    return io.TextIOWrapper(
        _Unbuffered(file) if stream.write_through else io.BufferedWriter(file),
        encoding=stream.encoding,
        errors="backslashreplace",  # of a terminal without Unicode
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
