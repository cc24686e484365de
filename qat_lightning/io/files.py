"""Write files of a run folder atomically, and refuse a folder with links or special files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PART = re.compile(r"\..+\.[0-9a-f]{16}\.part")
"""The name of a file while it is being written: `.NAME.<16 random digits>.part`."""

KINDS = {
    stat.S_IFLNK: "symbolic link", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}  # fmt: skip


class SpecialFileError(ValueError):
    """A link or a special file in a run folder, through which files outside of it could be changed."""


@contextmanager
def atomic_write(path: Path, previous: Path | None = None, durable: bool = True) -> Iterator[Path]:
    """Yield an empty temporary file in the same folder, and rename it to `path` when the block ends without an error.

    The temporary file is created exclusively under an unpredictable name, so that no link in the folder is followed.
    Renaming replaces the entry at `path`, also a link, and not the target of a link.

    Args:
        previous: a new name for the file that is at `path`.
        durable: flush the content to the disk before renaming, so that a killed process or a power failure leaves the old
            file or the new one.
    """
    temporary, mode = _temporary(path)
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors replaces the file by one that only its owner can read
        if durable:
            _flush(temporary)
        if previous is not None and path.is_file():
            path.replace(previous)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        with suppress(OSError):  # some network disks cannot flush a folder's names
            _flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8, see `atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON, see `atomic_write`; a number that is not finite becomes null, as JSON has no NaN."""
    write_text(path, json.dumps(finite(content), indent=2, allow_nan=False) + "\n")


def write_once(path: Path, text: str) -> None:
    """Write UTF-8 unless the file exists; several processes may do so at the same time."""
    temporary, _ = _temporary(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        os.link(temporary, path)  # unlike a renaming, a link replaces nothing
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """Compute the SHA-256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_hash(value: Any) -> Any:
    """Return the first digits of a SHA-256, and any other value as it is."""
    return f"{value[:8]}…" if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else value


def finite(content: Any) -> Any:
    """Replace numbers that are not finite by None, in dictionaries and lists of any depth.

    >>> finite({"a": [1.0, float("nan")]})
    {'a': [1.0, None]}
    """
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def check_plain(folder: Path) -> None:
    """Raise SpecialFileError for a folder with anything but plain files and folders, at any depth. It may be a link itself.

    Hard links are allowed: backups make them, and `atomic_write` never changes the content of an existing file. So are
    the links of Weights & Biases to its own logs below `wandb/`, where this package writes no file.
    """
    for path, mode in _entries(folder):
        if stat.S_ISLNK(mode) and folder / "wandb" in path.parents:
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            kind = KINDS.get(stat.S_IFMT(mode), "special file")
            raise SpecialFileError(
                f"{str(path)!r} is a {kind}, through which files outside of the run folder {str(folder)!r} could be"
                " changed: remove it, or replace it by a copy of the file"
            )


def remove_parts(folder: Path) -> None:
    """Remove the temporary files of killed writers. Call it only while no other process writes to the folder."""
    for path, mode in list(_entries(folder)):
        if stat.S_ISREG(mode) and PART.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _entries(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield path and mode of all entries below the folder; links are not followed."""
    left = [folder] if folder.is_dir() else []
    while left:
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                mode = entry.stat(follow_symlinks=False).st_mode
                yield Path(entry.path), mode
                if stat.S_ISDIR(mode):
                    left.append(Path(entry.path))


def _temporary(path: Path) -> tuple[Path, int]:
    """Create an empty file beside `path`; return it with the permissions of a new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    os.close(descriptor)
    return temporary, mode


def _flush(path: Path) -> None:
    """Flush a file's content, or a folder's names, to the disk."""
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)
