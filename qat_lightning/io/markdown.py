"""Escape foreign text for Markdown: cells, code spans and tables in which no markup takes effect."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from qat_lightning.io.screen import printable

MARKS = re.compile(r"[\\`*\[\]~$]|(?<!\w)_|_(?!\w)")
"""The characters that start code, emphasis, links, images, strikes and formulas; an underscore inside a word does not."""

ADDRESS = re.compile(r"(?<=\w):(?=//)|(?<=\bwww)\.|@")
"""The characters that turn plain text into a link or a mention."""


class Markdown(str):
    """Text that is Markdown already, and that a template inserts without escaping it."""


def text(words: object) -> Markdown:
    r"""Escape a name or a text so that Markdown shows it unchanged, on one line and without any markup.

    >>> text("<b>a</b> *b*")
    '&lt;b&gt;a&lt;/b&gt; \\*b\\*'
    """
    plain = html.escape(one_line(words), quote=False)
    return Markdown(ADDRESS.sub(lambda found: f"&#{ord(found[0])};", MARKS.sub(r"\\\g<0>", plain)))


def code(words: object) -> Markdown:
    """Format a name as a code span; a backtick becomes an apostrophe."""
    return Markdown(f"`{one_line(words).replace('`', chr(39))}`")


def block(language: str, lines: Sequence[str]) -> Markdown:
    """Format lines as a fenced code block whose fence is longer than any backtick run in the lines."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markdown("\n".join([f"{fence}{language}", *map(printable, lines), fence]))


def one_line(words: object) -> str:
    """Remove line breaks and escape control characters."""
    return printable(" ".join(str(words).split()))


def table(head: Sequence[object], rows: Sequence[Sequence[object]], left: int = 1) -> Markdown:
    """Format a Markdown table; the first `left` columns are aligned left, the others right.

    >>> print(table(["name", "count"], [["a", 1]]))
    | name | count |
    | :-- | --: |
    | a | 1 |
    """
    alignment = [Markdown(":--" if column < left else "--:") for column in range(len(head))]
    lines = [[escaped(cell).replace("|", r"\|") for cell in line] for line in (head, alignment, *rows)]
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines))


def escaped(value: object) -> str:
    """Return Markdown unchanged, and any other value escaped by `text`."""
    return value if isinstance(value, Markdown) else text(value)


def codes(names: Sequence[object]) -> Markdown:
    """Format names as a comma-separated list of code spans."""
    return Markdown(", ".join(map(code, names)))


def human_bytes(count: float | None) -> str:
    """Format a number of bytes.

    >>> human_bytes(29_430_912), human_bytes(None)
    ('28.07 MiB', '–')
    """
    if count is None:
        return "–"
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.4g} {unit}" if count < 1000 * factor else f"{count / factor:.0f} {unit}"
    return f"{count:.0f} B"


def human_seconds(seconds: float | None) -> str:
    """Format a duration.

    >>> human_seconds(8.4), human_seconds(723), human_seconds(18_120)
    ('8.4 s', '12 min 3 s', '5 h 2 min')
    """
    if seconds is None:
        return "–"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
