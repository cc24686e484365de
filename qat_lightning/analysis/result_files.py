"""`analysis/*.json` of a run folder, which callbacks write and the report reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
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


class _Spectra(TypedDict):
    eigenvalues: dict[str, list[list[float | None]]]
    about: str


class _Grid(TypedDict):
    steps: list[FiniteFloat]
    losses: list[list[float | None]]


class _Landscapes(TypedDict):
    landscapes: dict[str, _Grid]
    about: str


def write_spectra(folder: Path, spectra: Spectra, about: str) -> Path:
    """Write eigenvalues and a description of how they were computed; return the file."""
    write_json(folder / SPECTRA, {"about": about, "eigenvalues": spectra})
    return folder / SPECTRA


def read_spectra(folder: Path) -> tuple[dict[str, list[list[float]]], str] | None:
    """Read (spectra, about) without eigenvalues that are not finite; None if the run wrote none. ValueError: damaged."""
    if (content := _read(folder / SPECTRA, _Spectra)) is None:
        return None
    spectra = {
        name: [[value for value in batch if value is not None and math.isfinite(value)] for batch in batches]
        for name, batches in content["eigenvalues"].items()
    }
    return spectra, content["about"]


def write_landscapes(folder: Path, landscapes: Mapping[str, Landscape], about: str) -> Path:
    """Write landscapes, with null for a loss that is not finite; return the file."""
    models = {name: asdict(given) for name, given in landscapes.items()}
    write_json(folder / LANDSCAPES, {"about": about, "landscapes": models})
    return folder / LANDSCAPES


def read_landscapes(folder: Path) -> tuple[dict[str, Landscape], str] | None:
    """Read (landscapes, about); None if the run wrote none. ValueError: damaged."""
    if (content := _read(folder / LANDSCAPES, _Landscapes)) is None:
        return None
    landscapes = {}
    for name, grid in content["landscapes"].items():
        losses = [[math.nan if loss is None else loss for loss in row] for row in grid["losses"]]
        landscapes[name] = Landscape(grid["steps"], losses)
        if len(grid["steps"]) < 2 or {len(losses), *map(len, losses)} != {len(grid["steps"])}:
            raise ValueError(f"{LANDSCAPES} is damaged: its losses are not a square grid")
    return landscapes, content["about"]


def _read(path: Path, kind: Any) -> Any:
    """Read a file and check its types; None if it is missing."""
    if not path.is_file():
        return None
    try:
        return TypeAdapter(kind).validate_python(read_json(path))
    except ValueError as error:
        raise ValueError(f"{path.parent.name}/{path.name} is damaged") from error
