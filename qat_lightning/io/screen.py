"""Print foreign text on the terminal without letting it control the terminal.

Both streams of the program escape control characters (`CleanStream`); only the program's own console and progress bar may
send colors and cursor movements (`console`, `own_stdout`).
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

ALLOWED = "\n\t\u200c\u200d"
"""Line ends and tabs, and the joiners that Persian, Hindi and emoji need."""

SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(\x07|\x1b\\)|[ -/]*[0-~])")
"""A complete escape sequence: CSI (colors, cursor), OSC and similar (titles, links), others."""

_trusted: ContextVar[bool] = ContextVar("trusted", default=False)


def printable(text: str) -> str:
    r"""Escape each character that controls a terminal, or that hides or reorders other characters.

    >>> printable("a\x1b[31mb\r")
    'a\\x1b[31mb\\r'
    """
    if text.isprintable():
        return text
    return "".join(sign if _is_plain(sign) else sign.encode("unicode_escape").decode() for sign in text)


def _is_plain(sign: str) -> bool:
    return sign.isprintable() or sign in ALLOWED or unicodedata.category(sign) == "Zs"


def tell(message: str) -> None:
    """Print one message to the error stream."""
    print(printable(message), file=sys.stderr, flush=True)


class _Stream:
    """A text stream that passes everything but `write` on to another stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def write(self, text: str) -> int:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class CleanStream(_Stream):
    """A text stream that removes escape sequences, as other libraries color their output, and escapes other controls."""

    def write(self, text: str) -> int:
        """Write the text and return its length."""
        self._stream.write(text if _trusted.get() else printable(SEQUENCE.sub("", text.replace("\r\n", "\n"))))
        return len(text)


@contextmanager
def clean_streams() -> Iterator[None]:
    """Replace both streams of the program by a `CleanStream` inside the block."""
    with redirect_stdout(CleanStream(sys.stdout)), redirect_stderr(CleanStream(sys.stderr)):
        yield


class _TrustedStream(_Stream):
    """The stream of the program's own console and progress bar."""

    def write(self, text: str) -> int:
        before = _trusted.set(True)
        try:
            return self._stream.write(text)
        finally:
            _trusted.reset(before)

    def __eq__(self, other: object) -> bool:
        """Equal the wrapped stream, so that a progress bar is cleared before a line is printed to it."""
        return other is self._stream

    __hash__ = None  # type: ignore[assignment]


def own_stdout() -> Any:
    """Return the output stream for `printable` text with this program's own control sequences."""
    return _TrustedStream(sys.stdout)


class _PlainConsole(Console):
    """A console that shows square brackets as text, not markup, and escapes the text's control characters."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def console(quiet: bool = False) -> Console:
    """Return a console on the output stream."""
    return _PlainConsole(file=own_stdout(), quiet=quiet, highlight=False, markup=False, emoji=False)
