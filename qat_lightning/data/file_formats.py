"""Read the columns that are asked for from one file; nothing in its other columns can do harm."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
from pyarrow import compute, csv, parquet

from qat_lightning.data.csv_quoting import encloses_cells
from qat_lightning.data.json_records import read_records
from qat_lightning.io.documents import check_size

SUFFIXES = (".parquet", ".csv", ".tsv", ".json", ".jsonl")
COMPRESSED = ".gz"
"""May follow the suffix of a text file."""

LARGEST_BLOCK = 2**31 - 1
"""In bytes, of pyarrow; a row must fit into one block."""


class Column(NamedTuple):
    """A column to be read, and what to do where it is missing; `text`: its cells stay text, whatever they look like."""

    name: str
    remedy: str
    text: bool = False


class Content(NamedTuple):
    """The names of all columns of a file, and the table of those that were asked for and occur once."""

    names: list[str]
    table: pyarrow.Table


def suffix_of(file: Path) -> str:
    """Return ".csv" for data.csv, data.CSV and data.csv.gz."""
    return Path(file.name.lower().removesuffix(COMPRESSED)).suffix


def read_file(file: Path, columns: Sequence[Column]) -> Content:
    """Read `columns` of `file`; where none are given all, with the types that pyarrow finds.

    No cache is written. In csv and tsv files a cell is text, and "NA", "null", "true" stay words; a column that is not
    `Column.text` becomes numbers if all of its cells are numbers.

    Raises:
        OSError, ValueError and others of `files.DAMAGED`: the file is not what its suffix says.
    """
    check_size(file)  # a named pipe would be waited for
    wanted = {column.name: column.text for column in columns}
    match suffix_of(file):
        case ".parquet":
            return _read_parquet(file, wanted)
        case ".csv":
            data = _bytes(file)
            return _read_csv(data, wanted, _delimiter(data), '"')
        case ".tsv":
            data = _bytes(file)
            return _read_csv(data, wanted, "\t", '"' if encloses_cells(data) else False)
    return _read_json(_bytes(file), wanted)


def _bytes(file: Path) -> bytes:
    """Return the content of a text file in UTF-8: unpacked where its name says so, converted where it begins as UTF-16."""
    with pyarrow.input_stream(str(file), compression="gzip" if file.suffix.lower() == COMPRESSED else None) as stream:
        data: bytes = stream.read()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16").encode()
    return data.removeprefix(codecs.BOM_UTF8)


def _read_parquet(file: Path, wanted: dict[str, bool]) -> Content:
    with parquet.ParquetFile(file) as content:  # read_table would add columns of a folder called key=value
        names = content.schema_arrow.names
        return Content(names, content.read(columns=_once(names, wanted)))


def _read_csv(data: bytes, wanted: dict[str, bool], delimiter: str, quote: str | bool) -> Content:
    # one block: a cell may be as long as the file
    block = csv.ReadOptions(block_size=min(len(data) + 1, LARGEST_BLOCK))
    parsing = csv.ParseOptions(delimiter=delimiter, quote_char=quote, newlines_in_values=bool(quote))
    converting = csv.ConvertOptions(column_types=dict.fromkeys(wanted, pyarrow.string()))
    table = csv.read_csv(pyarrow.BufferReader(data), block, parsing, converting)
    names = _once(table.column_names, wanted)
    read = {name: table[name] if wanted.get(name, True) else _numbers(table[name]) for name in names}
    return Content(table.column_names, pyarrow.table(read))


def _delimiter(data: bytes) -> str:
    """Return what separates the cells of a csv file: a comma, or where its first line has none, a semicolon or a tab."""
    header = data.split(b"\n", 1)[0]
    return next((sign for sign in ",;\t" if sign.encode() in header), ",")


def _numbers(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """Return a column of texts as numbers, an empty text as a missing one, if all of them are numbers."""
    trimmed = compute.utf8_trim_whitespace(column)
    given = compute.if_else(compute.equal(trimmed, ""), pyarrow.scalar(None, pyarrow.string()), trimmed)
    for kind in (pyarrow.int64(), pyarrow.float64()):
        try:
            return given.cast(kind)
        except pyarrow.ArrowInvalid:
            continue
    return column


def _read_json(data: bytes, wanted: dict[str, bool]) -> Content:
    """Rows may lack keys, which are missing values then."""
    rows = read_records(data.decode())
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = {name: _array(name, [row.get(name) for row in rows]) for name in _once(names, wanted)}
    return Content(names, pyarrow.table(table))


def _array(name: str, values: list[Any]) -> pyarrow.Array:
    """Where texts and numbers are mixed, the numbers become text."""
    kinds = {type(value) for value in values if value is not None}
    if str in kinds and kinds <= {str, int, float, bool}:
        values = [None if value is None or value != value else str(value) for value in values]
    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError) as error:
        raise ValueError(f"column {name!r}: {error}") from None


def _once(names: Sequence[str], wanted: dict[str, bool]) -> list[str]:
    """Return the names of the wanted columns, or of all, that name one column each."""
    return [name for name in wanted or dict.fromkeys(names) if names.count(name) == 1]
