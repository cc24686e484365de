"""Markdown made of text that others may have written: cells, code spans and tables in which no mark takes effect."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from qat_lightning.io.screen import printable

CELL_MARK = "\\|"
"""A bar within a cell, in a code span as well."""

MARKS = re.compile(r"[\\`*\[\]~$]|(?<!\w)_|_(?!\w)")
"""What makes code, emphasis, links, pictures, strikes and formulas of a text; an underscore within a word does not."""

ADDRESS = re.compile(r"(?<=\w):(?=//)|(?<=\bwww)\.|@")
"""What makes a link or a mention of a text without any mark."""


def text(words: object) -> str:
    r"""Return a name or a text as Markdown that shows it as it is: in one line, no mark and no HTML tag takes effect.

    >>> text("<b>a</b> *b*")
    '&lt;b&gt;a&lt;/b&gt; \\*b\\*'
    """
    plain = html.escape(one_line(words), quote=False)
    return ADDRESS.sub(lambda found: f"&#{ord(found[0])};", MARKS.sub(r"\\\g<0>", plain))


def code(words: object) -> str:
    """Return a name as a code span, in which nothing takes effect; a backtick becomes an apostrophe."""
    return f"`{one_line(words).replace('`', chr(39))}`"


def block(language: str, lines: Sequence[str]) -> str:
    """Return a fenced block of code; the fence is longer than any in the lines."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *map(printable, lines), fence])


def one_line(words: object) -> str:
    """Return a name or a text without line breaks and control characters."""
    return printable(" ".join(str(words).split()))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns to the left, the others to the right."""
    lines = [head, [":--" if column < left else "--:" for column in range(len(head))], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', CELL_MARK) for cell in line)} |" for line in lines)


def human_bytes(count: float | None) -> str:
    """28.07 MiB, 417.6 MiB, 61.3 KiB."""
    if count is None:
        return "–"
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.4g} {unit}" if count < 1000 * factor else f"{count / factor:.0f} {unit}"
    return f"{count:.0f} B"


def human_seconds(seconds: float | None) -> str:
    """8.4 s, 12 min 3 s, 5 h 2 min."""
    if seconds is None:
        return "–"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
