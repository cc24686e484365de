"""Read columns of one csv, tsv, json, jsonl or parquet file as a table.

`datasets`' own readers write a cache, read all columns, and turn the texts "NA" and "null" into missing values.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
from pyarrow import compute, parquet
from pyarrow import csv as arrow_csv

from qat_lightning.io.documents import check_size

SUFFIXES = (".parquet", ".csv", ".tsv", ".json", ".jsonl")

LARGEST_BLOCK = 2**31 - 1
"""pyarrow's limit in bytes of a block; a row must fit into one block."""


class Column(NamedTuple):
    """A column to be read.

    Args:
        name: its name in the file.
        remedy: what to do if it is missing.
        text: its cells are text, even if they look like numbers.
    """

    name: str
    remedy: str
    text: bool = False


class Content(NamedTuple):
    """The names of all columns of a file, and the table of the chosen columns that it has."""

    names: list[str]
    table: pyarrow.Table


def read_file(file: Path, columns: Sequence[Column]) -> Content:
    """Read `columns` of `file`, or all columns if `columns` is empty.

    In csv and tsv files "NA", "null" and "true" are text; a column that is not `Column.text` becomes numbers if all of its
    cells are numbers.

    Raises:
        OSError, ValueError and the other `dataset_files.DAMAGED`: the content does not match the suffix.
    """
    check_size(file)  # reading a named pipe would block
    wanted = {column.name: column.text for column in columns}
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        with parquet.ParquetFile(file) as content:  # read_table adds columns for a folder called key=value
            names = content.schema_arrow.names
            return Content(names, content.read(columns=_chosen(names, wanted)))
    data = file.read_bytes().removeprefix(codecs.BOM_UTF8)
    if suffix == ".csv":
        header = data.split(b"\n", 1)[0]
        return _read_csv(data, wanted, next((sign for sign in ",;\t" if sign.encode() in header), ","), '"')
    if suffix == ".tsv":
        return _read_csv(data, wanted, "\t", '"' if encloses_cells(data) else False)
    rows = read_records(data.decode())
    names = list(dict.fromkeys(name for row in rows for name in row))
    arrays = {name: _array(name, [row.get(name) for row in rows]) for name in _chosen(names, wanted)}
    return Content(names, pyarrow.table(arrays))


def _read_csv(data: bytes, wanted: dict[str, bool], delimiter: str, quote: str | bool) -> Content:
    # one block: a cell may be as long as the file
    block = arrow_csv.ReadOptions(block_size=min(len(data) + 1, LARGEST_BLOCK))
    parsing = arrow_csv.ParseOptions(delimiter=delimiter, quote_char=quote, newlines_in_values=bool(quote))
    converting = arrow_csv.ConvertOptions(column_types=dict.fromkeys(wanted, pyarrow.string()))
    table = arrow_csv.read_csv(pyarrow.BufferReader(data), block, parsing, converting)
    names = _chosen(table.column_names, wanted)
    columns = {name: table[name] if wanted.get(name, True) else _numbers(table[name]) for name in names}
    return Content(table.column_names, pyarrow.table(columns))


def _numbers(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """Convert a column of texts to numbers, an empty text to a missing one, if all of them are numbers."""
    trimmed = compute.utf8_trim_whitespace(column)
    given = compute.if_else(compute.equal(trimmed, ""), pyarrow.scalar(None, pyarrow.string()), trimmed)
    for kind in (pyarrow.int64(), pyarrow.float64()):
        try:
            return given.cast(kind)
        except pyarrow.ArrowInvalid:
            continue
    return column


def encloses_cells(data: bytes) -> bool:
    r"""Return whether the quote marks of a tab-separated file enclose cells, as pandas writes it, or belong to the texts.

    They enclose cells if the file is strict csv with rows of one length, and cannot be read line by line or has doubled
    marks. GLUE's files enclose nothing: their quote marks are text, often without a partner.

    >>> encloses_cells(b'text\tlabel\n"he said ""great"" twice"\t1\n')
    True
    >>> encloses_cells(b'text\tlabel\n"the cat\t1\na "dog\t0\n')
    False
    """
    if b'"' not in data:
        return False
    text = data.decode(errors="replace")
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True) if row]
    except csv.Error:
        return False
    if len({len(row) for row in rows}) > 1:
        return False
    tabs = [line.count("\t") for line in text.split("\n") if line.strip("\r")]
    if len(set(tabs)) == 1 and len(tabs) == len(rows):  # the same rows line by line
        return '""' in text or text.startswith('"')
    return len(set(tabs)) > 1 or len(rows[0]) == 1


def read_records(text: str) -> list[dict[str, Any]]:
    r"""Return the rows of a JSON list, of {"data": list}, of JSON Lines, or of SQuAD's nested form (arXiv:1606.05250).

    Raises:
        ValueError: not JSON, or a row that is not an object.

    >>> read_records('{"text": "a cat"}\n{"text": "a dog"}\n')
    [{'text': 'a cat'}, {'text': 'a dog'}]
    """
    try:
        value = json.loads(text)
    except ValueError:
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    else:
        inner = value.get("data") if isinstance(value, dict) else value
        rows = inner if isinstance(inner, list) and all(isinstance(row, dict) for row in inner) else [value]
    if wrong := [row for row in rows if not isinstance(row, dict)]:
        raise ValueError(f"{wrong[0]!r} is not an object with a value for each column")
    if not rows or "paragraphs" not in rows[0]:
        return rows
    paragraphs = [paragraph for article in rows for paragraph in article["paragraphs"]]
    return [{"context": paragraph["context"], **question} for paragraph in paragraphs for question in paragraph["qas"]]


def _array(name: str, values: list[Any]) -> pyarrow.Array:
    """Convert values to an array; numbers among texts become text."""
    kinds = {type(value) for value in values if value is not None}
    if str in kinds and kinds <= {str, int, float, bool}:
        values = [None if value is None or value != value else str(value) for value in values]
    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError) as error:
        raise ValueError(f"column {name!r}: {error}") from None


def _chosen(names: Sequence[str], wanted: dict[str, bool]) -> list[str]:
    """Return the names of the wanted columns that exist, or of all."""
    return [name for name in wanted or names if name in names]
