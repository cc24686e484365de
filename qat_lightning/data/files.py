"""One split of a data set, from a folder of files or from the hub; every failure in one sentence with the remedy."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from qat_lightning.data.hub import Unreachable, require_hub

READERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}

# "NA", "null" and "None" are words and names of classes. A tab-separated line has no quoting: GLUE's have lone quote marks.
_OPTIONS: dict[str, dict[str, Any]] = {
    ".csv": {"keep_default_na": False},
    ".tsv": {"keep_default_na": False, "sep": "\t", "quoting": csv.QUOTE_NONE},
}


def read_split(path: str, name: str | None, split: str) -> Dataset:
    """The rows of `split`.

    Args:
        path: folder, or hub id of a data set.
        name: the hub's configuration, such as cola; a folder needs none.

    Raises:
        ValueError: nothing there, no or several files of that split, unreadable content, or no hub (`Unreachable`).
    """
    try:
        if Path(path).is_dir():
            return _read_file(_file(Path(path), split), split)
        require_hub({"data.path": path})
        return load_dataset(path, name, split=split)
    except (Unreachable, FileProblem):
        raise
    except (DatasetGenerationError, OSError, ValueError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(
            f"data.path={path!r}{f' data.name={name}' if name else ''}: the {split} split cannot be read ({reason}):"
            " give data.path=FOLDER with whole files"
        ) from error


class FileProblem(ValueError):
    """No file, or no single one, is the split's."""


def _file(folder: Path, split: str) -> Path:
    """`train.parquet`, or the only file whose name begins so (`validation_matched.parquet`)."""
    files = sorted(path for path in folder.iterdir() if path.suffix in READERS)
    found = [path for path in files if path.stem == split] or [path for path in files if path.stem.startswith(split)]
    if len(found) == 1:
        return found[0]
    problem = "several files" if found else "no file"
    held = ", ".join(sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))) or "nothing"
    raise FileProblem(
        f"data.path={str(folder)!r} has {problem} of the {split} split, it holds {held}: give it {split}.parquet"
        " (or .csv, .tsv, .json, .jsonl), or name another split with data.train_split=… data.validation_split=…"
    )


def _read_file(file: Path, split: str) -> Dataset:
    # keep_in_memory, and the cache of `datasets` for the rest: nothing is written beside the user's files
    options = _OPTIONS.get(file.suffix, {})
    return load_dataset(
        READERS[file.suffix], data_files={split: str(file)}, split=split, keep_in_memory=True, **options
    )
