"""Read one split of a data set, from a folder of files or from the hub; each failure is one sentence with the remedy."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow
from datasets import Dataset, load_dataset, packaged_modules
from datasets.exceptions import DatasetGenerationError
from pyarrow import types

from qat_lightning.data.file_formats import SUFFIXES, Column, Content, read_file, suffix_of
from qat_lightning.data.hub import require_hub

DAMAGED = (OSError, ValueError, NotImplementedError, TypeError, KeyError, RecursionError)
"""What pyarrow and json raise for files that are not what they should be."""

SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(-[0-9a-f]+)?")
"""The name of one of a split's files as the `datasets` library writes them: train-00000-of-00002."""

FORMATS = frozenset(module.name for module in pkgutil.iter_modules(packaged_modules.__path__))
"""What `load_dataset` takes for a file format, csv or pandas, and not for a data set: it would read whatever files lie in
the folder that the program was started in, pickles among them until datasets 5.2."""


def read_split(path: str, name: str | None, split: str, columns: Sequence[Column] = ()) -> Dataset:
    """Read the rows of `split` into memory.

    Args:
        path: folder, or hub id of a data set. A folder may be a copy of one of the hub: its files are in FOLDER/data, or in
            FOLDER/name.
        name: the hub's configuration, such as cola; a folder needs none.
        columns: to be read; all of them where none are given.

    Raises:
        ValueError: nothing there, no or several files of that split, unreadable content, a missing column, no hub
            (`Unreachable`), or a name of `FORMATS`.
    """
    folder = Path(path)
    if folder.is_dir():
        places = [folder, folder / (name or "data"), folder / "data"]
        place = next((place for place in places if place.is_dir() and _groups(place, split)), folder)
        rows = _read_files(_files(place, split), path, split, columns)
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
        rows = load_dataset(path, name, split=split)
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise ValueError(
            f"the {split} split of data.path={path!r} data.name={name} cannot be read ({_line(error)}): choose another"
            " data.name=…, another split with data.train_split=… data.validation_split=…, or give data.path=FOLDER"
        ) from error
    for column in columns:
        _check_column(column, rows.column_names, path, split)
    return rows


def _read_files(files: Sequence[Path], path: str, split: str, columns: Sequence[Column]) -> Dataset:
    contents = [_read_file(file, columns) for file in files]
    for content in contents:
        for column in columns if content.names else ():
            _check_column(column, content.names, path, split)
    try:
        return Dataset(_concatenated([content.table for content in contents]))
    except DAMAGED as error:
        raise ValueError(
            f"the files of the {split} split of data.path={path!r} do not go together ({_line(error)}): give their columns"
            " the same types"
        ) from error


def _concatenated(tables: Sequence[pyarrow.Table]) -> pyarrow.Table:
    """Return the rows of all files.

    A column that is text in some and numbers in others is text, as it would be in one csv file; not where a parquet file
    says more of its types, such as the names of classes.
    """
    texts = {field.name for table in tables for field in table.schema if types.is_string(field.type)}

    def as_text(field: pyarrow.Field) -> pyarrow.Field:
        number = types.is_integer(field.type) or types.is_floating(field.type)
        return field.with_type(pyarrow.string()) if number and field.name in texts else field

    alike = [
        table if table.schema.metadata else table.cast(pyarrow.schema(map(as_text, table.schema))) for table in tables
    ]
    return pyarrow.concat_tables(alike, promote_options="permissive")


def _read_file(file: Path, columns: Sequence[Column]) -> Content:
    try:
        return read_file(file, columns)
    except DAMAGED as error:
        raise ValueError(
            f"{str(file)!r} cannot be read ({_line(error)}): repair it (a text file must be UTF-8), or give data.path=FOLDER"
            " another folder"
        ) from error


def _check_column(column: Column, names: Sequence[str], path: str, split: str) -> None:
    """Raise ValueError, with the remedy, where the split lacks the column, or has several of that name."""
    where = f"the {split} split of data.path={path!r}"
    if (count := names.count(column.name)) > 1:
        raise ValueError(f"{where} has {count} columns called {column.name!r}: rename all but one of them in the file")
    if not count:
        held = ", ".join(name if name == name.strip() else repr(name) for name in names) or "none"
        raise ValueError(f"{where} has no column {column.name!r}, it has {held}: {column.remedy}")


def _files(folder: Path, split: str) -> list[Path]:
    """Return `train.parquet`, its shards, or the only file whose name begins so (`validation_matched.parquet`)."""
    groups = _groups(folder, split)
    found = [file for files in groups.values() for file in files]
    if len(groups) == 1 and all(SHARD.fullmatch(_stem(file)) for file in found):
        _check_shards(found, folder, split)
        return found
    if len(found) == 1:
        return found
    problem = "several files" if found else "no file"
    held = ", ".join(sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))) or "nothing"
    raise ValueError(
        f"data.path={str(folder)!r} has {problem} of the {split} split, it holds {held}: give it {split}.parquet"
        " (or .csv, .tsv, .json, .jsonl), or name another split with data.train_split=… data.validation_split=…"
    )


def _groups(folder: Path, split: str) -> dict[str, list[Path]]:
    """Return the files of the split, else of those splits whose name begins so, by their split's name."""
    groups: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if suffix_of(file) in SUFFIXES and _split_of(file).startswith(split):
            groups.setdefault(_split_of(file), []).append(file)
    return {split: groups[split]} if split in groups else groups


def _stem(file: Path) -> str:
    """Return "train" for train.csv and train.csv.gz."""
    return file.name[: file.name.lower().rindex(suffix_of(file))]


def _split_of(file: Path) -> str:
    shard = SHARD.fullmatch(_stem(file))
    return shard["split"] if shard else _stem(file)


def _check_shards(files: Sequence[Path], folder: Path, split: str) -> None:
    """Raise ValueError where a shard is missing, or the files are shards of two sets."""
    shards = [shard for file in files if (shard := SHARD.fullmatch(_stem(file)))]
    totals = {int(shard["total"]) for shard in shards}
    numbers = sorted(int(shard["number"]) for shard in shards)
    if len(totals) > 1 or numbers != list(range(max(totals))):
        raise ValueError(
            f"data.path={str(folder)!r} has {len(files)} of the {max(totals)} files of the {split} split"
            f" ({', '.join(file.name for file in files)}): give it each of them once, or one {split}.parquet"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split())
