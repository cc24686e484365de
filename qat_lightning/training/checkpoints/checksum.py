"""Checkpoints that show when they are damaged."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO, Any

import torch

from qat_lightning.io.files import atomic_write

SEAL = b"\nsha256:"
"""A checkpoint's last 72 bytes: this, and the SHA-256 of all bytes before it. torch.load reads past them."""


def write_sealed(content: Any, path: Path, previous: Path | None = None) -> None:
    """`torch.save`, whole or not at all, with the SHA-256 behind it."""
    with atomic_write(path, previous) as temporary, temporary.open("wb") as file:
        writer = _Hashed(file)
        torch.save(content, writer)  # type: ignore[arg-type]
        file.write(SEAL + writer.digest.hexdigest().encode())


def is_sealed(path: Path) -> bool:
    """Tell whether the file exists and is what `write_sealed` wrote, to the last byte."""
    try:
        with path.open("rb") as file:
            left = file.seek(0, os.SEEK_END) - len(SEAL) - 64
            file.seek(0)
            digest = hashlib.sha256()
            while left > 0 and (piece := file.read(min(left, 1 << 20))):
                digest.update(piece)
                left -= len(piece)
            return left == 0 and file.read() == SEAL + digest.hexdigest().encode()
    except FileNotFoundError:
        return False


def read_sealed(path: Path) -> Any:
    """Tensors, numbers and their containers, on the CPU; nothing in the file is run. ValueError if it is damaged or missing."""
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
