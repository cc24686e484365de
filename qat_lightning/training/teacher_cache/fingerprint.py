"""Whose signals a folder of the teacher's cache holds: all that they depend on, in one file, compared fact by fact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qat_lightning.io.documents import read_json
from qat_lightning.io.files import PART, write_once

MANIFEST = "teacher.json"
Facts = Mapping[str, str | int | float | bool | list[Any] | None]
"""What it is → what it was: all that the signals of a batch depend on, but the batch and how the attention is computed."""


def check_facts(folder: Path, facts: Facts, unknown: Sequence[str] = ()) -> None:
    """Whether the folder can hold the signals of such a teacher, as far as it is known.

    Args:
        unknown: facts that only time will tell.

    Raises:
        ValueError: it holds another's, each difference named; or files that are no cache's.
    """
    if not (folder / MANIFEST).is_file():
        _check_empty(folder)
        return
    kept = _read(folder / MANIFEST)
    names = sorted({*kept, *facts} - {*unknown})
    if changed := [name for name in names if kept.get(name) != facts.get(name)]:
        told = "; ".join(f"{name}: {_short(kept.get(name))} → {_short(facts.get(name))}" for name in changed)
        raise ValueError(
            f"teacher_cache={str(folder)!r} holds signals of another teacher, or made otherwise ({told}): give another folder,"
            " or remove this one"
        )


def claim(folder: Path, facts: Facts) -> str:
    """`check_facts`, and the folder is this teacher's from now on; the SHA-256 of the facts."""
    check_facts(folder, facts)
    text, place = json.dumps(facts, indent=2, sort_keys=True), folder / MANIFEST
    if not place.is_file():
        write_once(place, text)
    check_facts(folder, facts)  # another run may have been the first
    return hashlib.sha256(text.encode()).hexdigest()


def _check_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"teacher_cache={str(folder)!r} is a file: give a folder")
    if folder.exists() and any(not PART.fullmatch(path.name) for path in folder.iterdir()):
        raise ValueError(
            f"teacher_cache={str(folder)!r} holds files and no {MANIFEST}: give a folder that is new or empty"
        )


def _read(place: Path) -> dict[str, Any]:
    with suppress(ValueError):
        kept = read_json(place)
        if isinstance(kept, dict):
            return kept
    raise ValueError(
        f"{place} is damaged: remove its folder, whose signals are computed again, or give another teacher_cache"
    )


def _short(value: Any) -> Any:
    """The beginning of a fingerprint, which nobody compares by eye."""
    return f"{value[:8]}…" if isinstance(value, str) and len(value) == 64 else value
