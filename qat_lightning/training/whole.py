"""Files that are there whole or not at all, and checkpoints that show when they are damaged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

PART = ".part"
"""What a file's name ends in while it is being written."""

SEAL = b"\nsha256:"
"""A checkpoint's last 72 bytes: this, and the SHA-256 of all that stands before it. torch.load reads past them."""

_SEALED = len(SEAL) + 64


@contextmanager
def whole(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """A temporary name in the same folder to write to: renamed to `path` when the block ends, removed when it fails.

    The content reaches the disk before the name does, so a process that is killed or a machine that loses power leaves
    the old file or the new one.

    Args:
        previous: what stood at `path` is kept under this name, moved there when the new file is whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + PART)
    try:
        yield temporary
        _flush(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if previous is not None and path.is_file():
        path.replace(previous)
    temporary.replace(path)
    with suppress(OSError):  # some network disks, and Windows, know no flushing of a folder's names
        _flush(path.parent)


def write_sealed(content: Any, path: Path, previous: Path | None = None) -> None:
    """`torch.save`, whole or not at all, with the SHA-256 behind it."""
    with whole(path, previous) as temporary, temporary.open("wb") as file:
        writer = _Hashed(file)
        torch.save(content, writer)  # type: ignore[arg-type]
        file.write(SEAL + writer.digest.hexdigest().encode())


def is_sealed(path: Path) -> bool:
    """Whether the file is there and is what `write_sealed` wrote, to the last byte."""
    try:
        with path.open("rb") as file:
            left = file.seek(0, os.SEEK_END) - _SEALED
            file.seek(0)
            digest = hashlib.sha256()
            while left > 0 and (piece := file.read(min(left, 1 << 20))):
                digest.update(piece)
                left -= len(piece)
            return left == 0 and file.read() == SEAL + digest.hexdigest().encode()
    except FileNotFoundError:
        return False


def read_sealed(path: Path) -> Any:
    """Tensors, numbers and their containers, on the CPU; nothing in the file is run.

    Raises:
        ValueError: the file is damaged or not there.
    """
    if not is_sealed(path):
        raise ValueError(f"{path} is damaged or not there: give the run's own command again, it goes on without it")
    return torch.load(path, map_location="cpu", weights_only=True)


class _Hashed:
    """Passes on what is written, which torch writes in order, and hashes it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, piece: bytes) -> int:
        self.digest.update(piece)
        return self.file.write(piece)

    def flush(self) -> None:
        self.file.flush()


def _flush(path: Path) -> None:
    """A file's content, or a folder's names, to the disk."""
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)
