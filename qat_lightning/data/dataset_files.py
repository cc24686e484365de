"""Read one split of a data set, from a folder of files or from the hub."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow
from datasets import Dataset, load_dataset, packaged_modules
from datasets.exceptions import DatasetGenerationError

from qat_lightning.data.file_formats import SUFFIXES, Column, read_file
from qat_lightning.data.hub import require_hub

DAMAGED = (OSError, ValueError, NotImplementedError, TypeError, KeyError, RecursionError)
"""The errors that pyarrow and json raise for damaged files."""

SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(-[0-9a-f]+)?")
"""The name of one of a split's files as the `datasets` library writes them: train-00000-of-00002."""

FORMATS = frozenset(module.name for module in pkgutil.iter_modules(packaged_modules.__path__))
"""Names that `load_dataset` takes for a file format, such as csv or pandas: it would then read the files in the current
directory, including pickles until datasets 5.2."""


def read_split(path: str, name: str | None, split: str, columns: Sequence[Column] = ()) -> Dataset:
    """Read the rows of `split` into memory.

    Args:
        path: folder, or hub id of a data set. A folder may be a downloaded copy: its files are in FOLDER/data, or in
            FOLDER/name.
        name: the hub's configuration, such as cola; a folder needs none.
        columns: the columns to read; () for all.

    Raises:
        ValueError: no or several files of the split, unreadable content, a missing column, a name of `FORMATS`, or no hub
            (`UnreachableError`).
    """
    folder = Path(path)
    if folder.is_dir():
        places = [folder, folder / (name or "data"), folder / "data"]
        place = next((place for place in places if place.is_dir() and _groups(place, split)), folder)
        rows = _read_files(_files(place, split), path, split, columns)
        if not len(rows):
            raise ValueError(f"the {split} split of path={path!r} is empty: fill the file, or set path=FOLDER")
        return rows
    if path in FORMATS:
        raise ValueError(
            f"path={path!r} is the name of a file format and not a data set of the hub: set path=FOLDER, the folder of the"
            " files, or the data set's full name, owner/name"
        )
    require_hub({"path": path})
    try:
        rows = load_dataset(path, name, split=split)
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise ValueError(
            f"the {split} split of path={path!r} name={name} cannot be read ({_line(error)}): set another name=…, another"
            " split with train_split=… validation_split=…, or path=FOLDER"
        ) from error
    for column in columns:
        _check_column(column, rows.column_names, path, split)
    return rows


def read_table(file: Path, columns: Sequence[Column]) -> pyarrow.Table:
    """Read all columns of one file, those of `columns` as they say.

    Raises:
        ValueError: an unknown suffix, unreadable content, or a missing column.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise ValueError(f"give a file that ends in {', '.join(SUFFIXES)}")
    try:
        names = read_file(file, ()).names
        given = {column.name: column for column in columns}
        table = read_file(file, [given.get(name, Column(name, "")) for name in names]).table
    except DAMAGED as error:
        raise ValueError(f"it cannot be read ({_line(error)}): repair it (a text file must be UTF-8)") from error
    for column in columns:
        _check_column(column, names, str(file), "input")
    return table


def _read_files(files: Sequence[Path], path: str, split: str, columns: Sequence[Column]) -> Dataset:
    tables = []
    for file in files:
        try:
            names, table = read_file(file, columns)
        except DAMAGED as error:
            raise ValueError(
                f"{str(file)!r} cannot be read ({_line(error)}): repair it (a text file must be UTF-8), or set path=FOLDER"
            ) from error
        for column in columns if names else ():
            _check_column(column, names, path, split)
        tables.append(table)
    try:
        return Dataset(pyarrow.concat_tables(tables, promote_options="permissive"))
    except pyarrow.ArrowException as error:
        raise ValueError(
            f"the files of the {split} split of path={path!r} have columns of different types ({_line(error)}): make them"
            " the same"
        ) from error


def _check_column(column: Column, names: Sequence[str], path: str, split: str) -> None:
    """Raise ValueError if the split does not have the column."""
    if column.name not in names:
        found = ", ".join(name if name == name.strip() else repr(name) for name in names) or "none"
        raise ValueError(
            f"the {split} split of path={path!r} has no column {column.name!r} (columns: {found}): {column.remedy}"
        )


def _files(folder: Path, split: str) -> list[Path]:
    """Return train.parquet, its shards, or the only file whose name starts with the split (validation_matched.parquet)."""
    groups = _groups(folder, split)
    files = [file for group in groups.values() for file in group]
    shards = [shard for file in files if (shard := SHARD.fullmatch(file.stem))]
    if len(groups) == 1 and len(shards) == len(files):
        totals = {int(shard["total"]) for shard in shards}
        if len(totals) > 1 or sorted(int(shard["number"]) for shard in shards) != list(range(max(totals))):
            raise ValueError(
                f"path={str(folder)!r} has {len(files)} of the {max(totals)} files of the {split} split"
                f" ({', '.join(file.name for file in files)}): add the missing files, or one {split}.parquet"
            )
        return files
    if len(files) == 1:
        return files
    problem = "several files" if files else "no file"
    found = ", ".join(sorted(place.name for place in folder.iterdir() if not place.name.startswith("."))) or "nothing"
    raise ValueError(
        f"path={str(folder)!r} has {problem} of the {split} split, it contains {found}: add {split}.parquet"
        " (or .csv, .tsv, .json, .jsonl), or name another split with train_split=… validation_split=…"
    )


def _groups(folder: Path, split: str) -> dict[str, list[Path]]:
    """Return split → files of the split, or of all splits whose name starts with `split`."""
    groups: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        shard = SHARD.fullmatch(file.stem)
        own = shard["split"] if shard else file.stem
        if file.suffix.lower() in SUFFIXES and own.startswith(split):
            groups.setdefault(own, []).append(file)
    return {split: groups[split]} if split in groups else groups


def _line(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split())
