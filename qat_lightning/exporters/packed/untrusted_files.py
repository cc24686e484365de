"""Reading what somebody else may have written: JSON and safetensors, checked before anything is made of them."""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from qat_lightning.io.documents import DocumentError, check_nesting
from qat_lightning.io.documents import read_bytes as read_limited

LARGEST_JSON = 100 * 2**20
"""Bytes of every file but the weights; safetensors' own limit of a header."""

KINDS = {"U8": torch.uint8, "F32": torch.float32, "F16": torch.float16, "I64": torch.int64, "BOOL": torch.bool}
"""The types of safetensors that a packed folder has."""

SUFFIXES = {".json", ".jinja", ".model", ".safetensors", ".txt"}
"""What lies in a packed folder; no file that Python, or a pickle's reader, would run."""

REMEDY = "export again, or copy the whole folder again"


class PackedError(ValueError):
    """A packed folder that cannot be trusted, or is none."""


@dataclass(frozen=True)
class Entry:
    """One tensor in a safetensors file; `begin` and `end` count from the end of the header."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


def in_a_line(error: Exception) -> str:
    """What went wrong; transformers' messages have several lines, and a KeyError's is the key alone."""
    named = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)
    return " ".join(named.split())


def sha256(data: Any) -> str:
    """Of bytes, or of what lies in memory as bytes do."""
    return hashlib.sha256(data).hexdigest()


def read_bytes(folder: Path, name: str, largest: int = LARGEST_JSON) -> bytes:
    """The file of that name, which must lie in the folder itself.

    Raises:
        PackedError: a name that leads out of the folder, by dots or by a link; no such file; more than `largest` bytes.
    """
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name or "\0" in name:
        raise PackedError(f"{folder}: the name {name!r} leads out of the folder: {REMEDY}")
    if PurePosixPath(name).suffix not in SUFFIXES:
        raise PackedError(f"{folder}: {name} is no file of a packed folder ({', '.join(sorted(SUFFIXES))}): {REMEDY}")
    path = folder.joinpath(*parts)
    try:
        if folder.resolve() not in path.resolve().parents and path.resolve().parent not in _blobs(folder):
            raise PackedError(f"{folder}: {name} is a link out of the folder: copy the file itself")
        if not stat.S_ISREG(path.stat().st_mode):
            raise PackedError(f"{folder}: {name} is no file: {REMEDY}")
        return read_limited(path, largest)
    except DocumentError as error:
        raise PackedError(f"{error}: {REMEDY}") from error
    except (OSError, RuntimeError) as error:  # a link to itself is a RuntimeError
        told = getattr(error, "strerror", None) or error
        raise PackedError(f"{folder}: {name} cannot be read ({told}): {REMEDY}") from error


def _blobs(folder: Path) -> list[Path]:
    """Where the hub's cache keeps the files that a snapshot links to."""
    return [parent / "blobs" for parent in folder.resolve().parents]


def read_json(data: bytes, name: str) -> dict[str, Any]:
    """An object without a name twice and without NaN.

    Raises:
        PackedError: anything else.
    """
    if len(data) > LARGEST_JSON:
        raise PackedError(f"{name} has {len(data)} bytes of JSON, more than any model needs: {REMEDY}")
    try:
        found = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_refuse)
        check_nesting(found, name)
        # What cannot be written again, as half a surrogate pair or 1e999, could not be checked, nor be told of.
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise PackedError(f"{name} is no valid JSON ({error}): {REMEDY}") from error
    if not isinstance(found, dict):
        raise PackedError(f"{name} holds no JSON object: {REMEDY}")
    return found


def read_header(data: bytes, name: str) -> tuple[dict[str, Entry], memoryview]:
    """The entries of a safetensors file in the order of their bytes, which are joined without a hole; and those bytes.

    The format: 8 bytes, little-endian, the length of the header; a JSON object; the tensors' bytes.

    Raises:
        PackedError: a header that is none; a file that is too short, with the first tensor that is cut; one too long.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(LARGEST_JSON, len(data) - 8):
        raise PackedError(f"{name} is cut short within its header, or its header's length is wrong: {REMEDY}")
    header = read_json(data[8 : 8 + length], f"the header of {name}")
    header.pop("__metadata__", None)
    entries = sorted(
        ((tensor, _entry(name, tensor, told)) for tensor, told in header.items()),
        key=lambda pair: (pair[1].begin, pair[0]),
    )
    body, end = memoryview(data)[8 + length :], 0
    for tensor, entry in entries:
        if entry.begin != end:
            raise PackedError(f"{name}: {tensor} does not begin where the tensor before it ends: {REMEDY}")
        end = entry.end
        if end > len(body):
            raise PackedError(f"{name} is cut short: {tensor} ends at byte {end} of {len(body)}: {REMEDY}")
    if end != len(body):
        raise PackedError(f"{name} has {len(body) - end} bytes after its last tensor: {REMEDY}")
    return dict(entries), body


def tensors(entries: dict[str, Entry], body: memoryview) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of each entry, in memory of their own."""
    for name, entry in entries.items():
        kind = KINDS[entry.kind]
        if entry.begin == entry.end:
            yield name, torch.empty(entry.shape, dtype=kind)
        else:
            flat = torch.frombuffer(bytearray(body[entry.begin : entry.end]), dtype=kind)
            yield name, flat.reshape(entry.shape)


def _entry(name: str, tensor: str, told: Any) -> Entry:
    try:
        kind, shape, (begin, end) = told["dtype"], tuple(told["shape"]), told["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        if not whole or kind not in KINDS or end - begin != math.prod(shape) * KINDS[kind].itemsize:
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise PackedError(f"{name}: the header's entry of {tensor} makes no sense: {REMEDY}") from error
    return Entry(kind, shape, begin, end)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice in one object")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")
