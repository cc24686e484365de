"""Who has started the program asks for its end, or goes away; without torch, so that the command line can import it first."""

from __future__ import annotations

import atexit
import codecs
import errno
import io
import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from types import FrameType
from typing import Any, TextIO

from qat_lightning.training.process.signals import ASKING

READABLE = "qat_lightning.readable"
"""The error handler of the program's streams, see `_readable`."""

SPELLED = {
    "…": "...", "×": "x", "·": "-", "–": "-", "—": "-", "−": "-", "→": "->", "←": "<-", "↑": "^", "↓": "v", "±": "+-",
    "≤": "<=", "≥": ">=", "≠": "!=", "∓": "-+", "█": "#", "─": "-", "│": "|",
}  # fmt: skip
"""What this program writes beyond ASCII → the same for a terminal without it."""

GONE = (errno.EPIPE, errno.EIO)
"""Nobody reads a pipe any more; a terminal has been closed."""


class EndedBySignal(SystemExit):
    """Outside of a training, where there is nothing to save first. Ends with 128 + signal, as a shell tells it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """The first signal that asks for the end unwinds the program, as Ctrl-C does; a second ends it at once.

    Signals that the program was started to ignore stay ignored.
    """
    process, asked = os.getpid(), False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        own = os.getpid() == process  # or forked to load data: the process that needs the data ends that one
        if not own or asked:
            signal.signal(number, signal.SIG_DFL)
        if own and asked:
            os.kill(process, number)
        elif own:
            asked = True
            raise KeyboardInterrupt if number == signal.SIGINT else EndedBySignal(number)

    main = threading.current_thread() is threading.main_thread()  # Python allows no other one to set handlers
    heeded = [number for number in ASKING if main and signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if main and hasattr(signal, "SIGCHLD"):
            # Whom the signal has ended as well is no news: torch's own handler would raise amid the interpreter's end.
            atexit.register(signal.signal, signal.SIGCHLD, signal.SIG_DFL)


def _readable(error: UnicodeError) -> tuple[str, int]:
    """Spell what the stream's encoding lacks in ASCII: `SPELLED`, a letter without its accent, else an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spelled, error.object[error.start : error.end])), error.end


def _spelled(sign: str) -> str:
    plain = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode() if sign.isalpha() else ""
    return SPELLED.get(sign) or plain or sign.encode("ascii", "backslashreplace").decode()


codecs.register_error(READABLE, _readable)


@contextmanager
def words_may_be_lost() -> Iterator[None]:
    """The program outlives those who read what it says: `… | head -1`, a closed terminal."""
    with redirect_stdout(_lasting(sys.stdout)), redirect_stderr(_lasting(sys.stderr)):
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):
                    stream.flush()


class _Prompt(io.BufferedWriter):
    """Writes at once, as PYTHONUNBUFFERED=1 asks: what goes to two streams stays in order, and nothing waits for an end."""

    def write(self, words: Any) -> int:
        written = super().write(words)
        self.flush()
        return written


class _Lasting(io.FileIO):
    """A file that forgets what can no more be written, and is silent from then on, also for processes started later."""

    def write(self, words: Any) -> int:
        try:
            return super().write(words)
        except OSError as error:
            if error.errno not in GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(words)


def _lasting(stream: TextIO | None) -> TextIO:
    """The same stream on a lasting file; left alone where it is no file of the system's."""
    if stream is None:  # closed before the program was started
        return open(os.devnull, "w")
    if type(stream) is not io.TextIOWrapper:
        return stream
    try:
        stream.flush()
        file = _Lasting(stream.fileno(), "w", closefd=False)
    except OSError:
        return stream
    return io.TextIOWrapper(
        _Prompt(file) if stream.write_through else io.BufferedWriter(file),
        encoding=stream.encoding,
        errors=READABLE,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
