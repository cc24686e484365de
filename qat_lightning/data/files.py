"""One split of a data set, from a folder of files or from the hub; every failure in one sentence with the remedy."""

from __future__ import annotations

import json
import pkgutil
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset, load_dataset, packaged_modules
from datasets.exceptions import DatasetGenerationError
from pyarrow import csv, parquet

from qat_lightning.hub import require_hub

SUFFIXES = (".parquet", ".csv", ".tsv", ".json", ".jsonl")
DAMAGED = (OSError, ValueError, NotImplementedError, TypeError, KeyError, RecursionError)
"""What pyarrow and json raise for files that are not what they should be."""

FORMATS = frozenset(module.name for module in pkgutil.iter_modules(packaged_modules.__path__))
"""What `load_dataset` takes for a file format, csv or pandas, and not for a data set: it would read whatever files lie in
the folder that the program was started in, pickles among them until datasets 5.2."""


def read_split(path: str, name: str | None, split: str) -> Dataset:
    """The rows of `split`, in memory.

    Args:
        path: folder, or hub id of a data set.
        name: the hub's configuration, such as cola; a folder needs none.

    Raises:
        ValueError: nothing there, no or several files of that split, unreadable content, no hub (`Unreachable`), or a
            name of `FORMATS`.
    """
    folder = Path(path)
    if folder.is_dir():
        rows = _rows(_file(folder, split))
        if not len(rows):
            raise ValueError(
                f"the {split} split of data.path={path!r} is empty: give data.path=FOLDER another folder, or fill the file"
            )
        return rows
    if path in FORMATS:
        raise ValueError(
            f"data.path={path!r} is the name of a file format, and no data set of the hub: give data.path=FOLDER, the folder"
            " of the files, or the data set's own name as owner/name"
        )
    require_hub({"data.path": path})
    try:
        return load_dataset(path, name, split=split)
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise ValueError(
            f"the {split} split of data.path={path!r} data.name={name} cannot be read ({_line(error)}): choose another"
            " data.name=…, another split with data.train_split=… data.validation_split=…, or give data.path=FOLDER"
        ) from error


def _rows(file: Path) -> Dataset:
    try:
        return Dataset(_table(file))
    except DAMAGED as error:
        raise ValueError(
            f"{str(file)!r} cannot be read ({_line(error)}): repair it, or give data.path=FOLDER another folder"
        ) from error


def require_column(split: Dataset, name: str, path: str, column: str, remedy: str) -> None:
    """Raises ValueError, with the remedy, where the split called `name` of the data at `path` lacks that column."""
    if column not in split.column_names:
        held = ", ".join(split.column_names) or "none"
        raise ValueError(f"the {name} split of data.path={path!r} has no column {column!r}, it has {held}: {remedy}")


def _file(folder: Path, split: str) -> Path:
    """`train.parquet`, or the only file whose name begins so (`validation_matched.parquet`)."""
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    found = [path for path in files if path.stem == split] or [path for path in files if path.stem.startswith(split)]
    if len(found) == 1:
        return found[0]
    problem = "several files" if found else "no file"
    held = ", ".join(sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))) or "nothing"
    raise ValueError(
        f"data.path={str(folder)!r} has {problem} of the {split} split, it holds {held}: give it {split}.parquet"
        " (or .csv, .tsv, .json, .jsonl), or name another split with data.train_split=… data.validation_split=…"
    )


def _table(file: Path) -> pyarrow.Table:
    """Read directly: no cache is written, "NA" and "null" stay words, and a line with a column too many is an error."""
    match file.suffix:
        case ".parquet":
            return parquet.read_table(file)
        case ".csv":
            return csv.read_csv(file, parse_options=csv.ParseOptions(newlines_in_values=True))
        case ".tsv":  # no quoting: GLUE's hold lone quote marks
            return csv.read_csv(file, parse_options=csv.ParseOptions(delimiter="\t", quote_char=False))
    return pyarrow.Table.from_pylist(_objects(file.read_text(encoding="utf-8-sig")))


def _objects(text: str) -> list[dict[str, Any]]:
    """Of a JSON list, or of one object in each line."""
    whole = text.lstrip().startswith("[")
    # split, not splitlines: a JSON text may hold Unicode's own line ends
    rows = json.loads(text) if whole else [json.loads(line) for line in text.split("\n") if line.strip()]
    if wrong := [row for row in rows if not isinstance(row, dict)]:
        raise ValueError(f"{wrong[0]!r} is no object with a value for each column")
    return rows


def _line(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split())
