"""`analysis/*.json` of a run folder, which callbacks write and the report reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat, TypeAdapter
from typing_extensions import TypedDict

from qat_lightning.analysis.loss_landscape import Landscape
from qat_lightning.io.documents import read_json
from qat_lightning.io.files import write_json

SPECTRA, LANDSCAPES = Path("analysis/hessian.json"), Path("analysis/landscape.json")
"""Places below the run folder."""

Spectra = Mapping[str, Sequence[Sequence[float]]]
"""Model → the top eigenvalues of each mini-batch."""


def write_spectra(folder: Path, spectra: Spectra, about: str) -> Path:
    """Write eigenvalues and a description of how they were computed; return the file."""
    write_json(folder / SPECTRA, {"about": about, "eigenvalues": spectra})
    return folder / SPECTRA


def read_spectra(folder: Path) -> tuple[dict[str, list[list[float]]], str] | None:
    """Read (spectra, about) without eigenvalues that are not finite; None if the run wrote none.

    Raises:
        ValueError: the file is damaged.
    """
    content = _read(folder / SPECTRA, _SPECTRA)
    if content is None:
        return None
    spectra = {
        name: [[value for value in batch if value is not None and math.isfinite(value)] for batch in batches]
        for name, batches in content["eigenvalues"].items()
    }
    return spectra, content["about"]


def write_landscapes(folder: Path, landscapes: Mapping[str, Landscape], about: str) -> Path:
    """Write landscapes, with null for a loss that is not finite; return the file."""
    models = {name: {"steps": given.steps, "losses": given.losses} for name, given in landscapes.items()}
    write_json(folder / LANDSCAPES, {"about": about, "landscapes": models})
    return folder / LANDSCAPES


def read_landscapes(folder: Path) -> tuple[dict[str, Landscape], str] | None:
    """Read (landscapes, about); None if the run wrote none.

    Raises:
        ValueError: the file is damaged.
    """
    content = _read(folder / LANDSCAPES, _LANDSCAPES)
    if content is None:
        return None
    landscapes = {
        name: Landscape(
            given["steps"], [[math.nan if loss is None else loss for loss in row] for row in given["losses"]]
        )
        for name, given in content["landscapes"].items()
    }
    for given in landscapes.values():
        if len(given.steps) < 2 or {len(given.losses), *map(len, given.losses)} != {len(given.steps)}:
            raise ValueError(f"{LANDSCAPES} is damaged: its losses are not a square grid")
    return landscapes, content["about"]


class _Spectra(TypedDict):
    eigenvalues: dict[str, list[list[float | None]]]
    about: str


class _Grid(TypedDict):
    steps: list[FiniteFloat]
    losses: list[list[float | None]]


class _Landscapes(TypedDict):
    landscapes: dict[str, _Grid]
    about: str


_SPECTRA, _LANDSCAPES = TypeAdapter(_Spectra), TypeAdapter(_Landscapes)


def _read(path: Path, kind: TypeAdapter[Any]) -> Any:
    """Read a file and check its types; None if it is missing."""
    if not path.is_file():
        return None
    try:
        return kind.validate_python(read_json(path))
    except ValueError as error:
        raise ValueError(f"{path.parent.name}/{path.name} is damaged") from error
