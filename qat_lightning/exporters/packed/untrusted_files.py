"""Read JSON and safetensors of untrusted origin; everything is checked before objects are made of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, deserialize
from torch import Tensor

from qat_lightning.io.documents import check_nesting
from qat_lightning.io.documents import read_bytes as read_limited

LARGEST_JSON = 100 * 2**20
"""Bytes of every file but the weights; safetensors' own limit of a header."""

KINDS = {"U8": torch.uint8, "F32": torch.float32, "F16": torch.float16, "I64": torch.int64, "BOOL": torch.bool}
"""The types of safetensors that a packed folder has."""

SUFFIXES = {".json", ".jinja", ".model", ".safetensors", ".txt"}
"""The types of files in a packed folder; neither Python nor a reader of pickles would run one of them."""

REMEDY = "export again, or copy the whole folder again"


class PackedError(ValueError):
    """A folder that cannot be trusted, or is not a packed one."""


@contextmanager
def refusing(folder: Path) -> Iterator[None]:
    """Turn every error inside the block into a PackedError of one line, with the folder and the remedy."""
    try:
        yield
    except (PackedError, MemoryError):
        raise
    except Exception as error:  # of the checks here, of safetensors, torch and transformers
        raise PackedError(f"{folder}: {in_a_line(error)}: {REMEDY}") from error


class StoredTensor(NamedTuple):
    """One tensor of a safetensors file: the name of its type there, its shape and its bytes."""

    kind: str
    shape: tuple[int, ...]
    data: bytearray


def in_a_line(error: Exception) -> str:
    """Format an error in one line; the message of a KeyError is the key alone."""
    named = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)
    return " ".join(named.split())


def sha256(data: Any) -> str:
    """Compute the SHA-256 of bytes, or of an array's memory."""
    return hashlib.sha256(data).hexdigest()


def read_bytes(folder: Path, name: str, largest: int = LARGEST_JSON) -> bytes:
    """Read the file of that name, which must be in the folder itself.

    Raises ValueError for a name that leads out of the folder, by dots or by a link, no plain file, or more than `largest` bytes.
    """
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name or "\0" in name:
        raise ValueError(f"the name {name!r} leads out of the folder")
    if PurePosixPath(name).suffix not in SUFFIXES:
        raise ValueError(f"{name} is not a file of a packed folder ({', '.join(sorted(SUFFIXES))})")
    path = folder.joinpath(*parts)
    blobs = [
        parent / "blobs" for parent in folder.resolve().parents
    ]  # of the hub's cache, to which a snapshot may link
    if folder.resolve() not in path.resolve().parents and path.resolve().parent not in blobs:
        raise PackedError(f"{folder}: {name} is a link out of the folder: copy the file itself")
    return read_limited(path, largest)


def read_json(data: bytes, name: str, kind: type = dict) -> Any:
    """Read a JSON object, or a list with kind=list; names must be unique and numbers finite, or ValueError is raised."""
    try:
        found = json.loads(data.decode(), object_pairs_hook=_once)
        check_nesting(found, name)
        # NaN, half a surrogate pair or 1e999 could not be written again, neither for a checksum nor in a message.
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid JSON ({error})") from error
    if not isinstance(found, kind):
        raise ValueError(f"{name} does not hold a JSON {'object' if kind is dict else 'list'}")
    return found


def read_tensors(data: bytes, name: str) -> dict[str, StoredTensor]:
    """Read a safetensors file; the library checks that its tensors cover the file without a gap or an overlap.

    Raises ValueError for a damaged file, or a type that a packed folder does not hold.
    """
    try:
        entries = deserialize(data)
    except SafetensorError as error:
        raise ValueError(f"{name} is not a complete safetensors file ({error})") from error
    found = {tensor: StoredTensor(each["dtype"], tuple(each["shape"]), each["data"]) for tensor, each in entries}
    for tensor, entry in found.items():
        if entry.kind not in KINDS:
            raise ValueError(f"{name}: {tensor} has the type {entry.kind}, which a packed folder does not hold")
    return found


def to_tensor(entry: StoredTensor) -> Tensor:
    """Make a tensor of the entry's bytes."""
    kind = KINDS[entry.kind]
    flat = torch.frombuffer(entry.data, dtype=kind) if entry.data else torch.empty(0, dtype=kind)
    return flat.reshape(entry.shape)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice in one object")
    return found
