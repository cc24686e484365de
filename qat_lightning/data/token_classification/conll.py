"""Read words and tags from CoNLL-style files: a word a line, its tag in a column, a blank line between sentences."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path

from qat_lightning.io.documents import check_size

SUFFIXES = (".conll", ".iob", ".iob2", ".bio", ".txt")

DOCUMENT = "-DOCSTART-"
"""The first column of a line between documents (CoNLL-2003)."""


def conll_file(path: str, split: str) -> Path | None:
    """Return FOLDER/split with one of `SUFFIXES`; None without one."""
    files = (Path(path) / f"{split}{suffix}" for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def read_conll(file: Path, columns: Sequence[int]) -> list[list[list[str]]]:
    """Return the sentences of a file, for each the cells of `columns`, a list for each column.

    A line with a tab is cut at its tabs, another one at its spaces.

    Args:
        columns: positions from 0, or from the end with -1 for the last.

    Raises:
        ValueError: text that is not UTF-8, or a line without one of the columns.
    """
    check_size(file)
    try:
        text = file.read_bytes().removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(file)!r} cannot be read ({error}): save it as UTF-8") from error
    sentences: list[list[list[str]]] = [[]]
    for number, line in enumerate(text.splitlines(), 1):
        cells = (line.rstrip().split("\t") if "\t" in line else line.split()) if line.strip() else []
        if not cells or cells[0] == DOCUMENT:
            sentences.append([])
            continue
        try:
            sentences[-1].append([cells[column] for column in columns])
        except IndexError:
            raise ValueError(
                f"line {number} of {str(file)!r} has {len(cells)} columns, and conll_columns={list(columns)} needs more: repair"
                " the line, or set conll_columns=[word,tag]"
            ) from None
    return [[list(column) for column in zip(*sentence, strict=True)] for sentence in sentences if sentence]
