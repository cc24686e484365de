"""What the terminal shows: characters of names, texts and messages are printed, none of them controls the terminal.

The program's streams print every character (`Cleansed`); only its own console and its own progress bar may send colours and
cursor movements (`console`, `own_stdout`).
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

KEPT = "\n\t\u200c\u200d"
"""Line ends and tabs, and the joiners that Persian, Hindi and emoji are written with."""

SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(\x07|\x1b\\)|[ -/]*[0-~])")
"""A whole escape sequence: CSI (colours, cursor), OSC and its like (titles, links), others."""

_own: ContextVar[bool] = ContextVar("own", default=False)


def printable(text: str) -> str:
    r"""Return the text with an escape for each character that controls a terminal or hides or reorders others.

    >>> printable("a\x1b[31mb\r")
    'a\\x1b[31mb\\r'
    """
    if text.isprintable():
        return text
    return "".join(sign if _is_plain(sign) else sign.encode("unicode_escape").decode() for sign in text)


def _is_plain(sign: str) -> bool:
    return sign.isprintable() or sign in KEPT or unicodedata.category(sign) == "Zs"


def tell(words: str) -> None:
    """Print one message for the user to the error stream."""
    print(printable(words), file=sys.stderr, flush=True)


class Cleansed:
    """A text stream that writes characters only.

    Whole escape sequences are left out, as other libraries colour what they say; the rest of what is not printable is
    written as an escape.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text; returns its length."""
        self._stream.write(text if _own.get() else printable(SEQUENCE.sub("", text.replace("\r\n", "\n"))))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def cleansed() -> Iterator[None]:
    """Both streams of the program are `Cleansed`."""
    with redirect_stdout(Cleansed(sys.stdout)), redirect_stderr(Cleansed(sys.stderr)):
        yield


class _Own:
    """The stream of the program's own console and progress bar."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _trusted():
            return self._stream.write(text)

    def __eq__(self, other: object) -> bool:
        """Equal to the stream: a progress bar is cleared before a line is printed to it."""
        return other is self._stream

    __hash__ = None  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _trusted() -> Iterator[None]:
    before = _own.set(True)
    try:
        yield
    finally:
        _own.reset(before)


def own_stdout() -> Any:
    """Return the output stream for text that is `printable` already, with control sequences of this program."""
    return _Own(sys.stdout)


class _PlainConsole(Console):
    """A console on which square brackets are text, not markup, and control characters of the text are escapes."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def console(quiet: bool = False) -> Console:
    """Return a console on the output stream."""
    return _PlainConsole(file=own_stdout(), quiet=quiet, highlight=False, markup=False, emoji=False)
