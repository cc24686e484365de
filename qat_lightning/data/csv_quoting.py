"""Decide whether quote marks enclose the cells of a tab-separated file, or belong to its texts."""

from __future__ import annotations

import re

PLAIN = rb"[^\t\n]*+"
ON_ONE_LINE = rb'(?:"(?:[^"\n]|"")*+"|[^"\t\n]*+)'
ENCLOSED = rb'(?:"(?:[^"]|"")*+"|[^"\t\n]*+)'
"""What a cell may be: anything but tabs and line ends; enclosed, inner quote marks doubled; enclosed over several lines."""


def encloses_cells(data: bytes) -> bool:
    """Return whether the quote marks of a tab-separated file enclose cells.

    pandas and spreadsheets enclose a cell that holds a quote mark, a tab or a line end, and double the marks inside.
    GLUE's files enclose nothing: their quote marks are text, often without a partner. A file counts as enclosed where all
    of its quote marks can be read so, and some of them must be.

    >>> encloses_cells(b'text\\tlabel\\n"he said ""great"" twice"\\t1\\n')
    True
    >>> encloses_cells(b'text\\tlabel\\n"the cat\\t1\\na "dog\\t0\\n')
    False
    """
    if b'"' not in data:
        return False
    columns = data.split(b"\n", 1)[0].count(b"\t") + 1
    if _consists_of(PLAIN, columns, data):
        if _consists_of(ON_ONE_LINE, columns, data):
            return b'""' in data or data.startswith(b'"')
        if columns > 1:  # line ends inside of cells would not leave the right number of tabs in every line
            return False
    return _consists_of(ENCLOSED, columns, data)


def _consists_of(cell: bytes, columns: int, data: bytes) -> bool:
    """Return whether every row, but for empty lines, has so many of such cells."""
    row = re.compile(rb"%b(?:\t%b){%d}\r?(?:\n|\Z)(?:\r?\n)*+" % (cell, cell, columns - 1))
    position = 0
    while position < len(data):
        found = row.match(data, position)
        if found is None:
            return False
        position = found.end()
    return True
