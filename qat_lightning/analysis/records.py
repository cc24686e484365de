"""`analysis/*.json` of a run folder: written while it trains, read by its report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from qat_lightning.analysis.landscape import Landscape
from qat_lightning.files import write_json

SPECTRA, LANDSCAPES = Path("analysis/hessian.json"), Path("analysis/landscape.json")
"""Below the run folder."""

Spectra = Mapping[str, Sequence[Sequence[float]]]
"""Model → for each mini-batch its top eigenvalues."""


def write_spectra(folder: Path, spectra: Spectra, about: str) -> Path:
    """Args: about: how they were made, for the reader."""
    write_json(folder / SPECTRA, {"about": about, "eigenvalues": spectra})
    return folder / SPECTRA


def read_spectra(folder: Path) -> tuple[dict[str, list[list[float]]], str] | None:
    """(spectra, about); None where the run wrote none. Eigenvalues that are not finite numbers are left out."""
    path = folder / SPECTRA
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    spectra = {
        name: [[value for value in batch if value is not None] for batch in batches]
        for name, batches in content["eigenvalues"].items()
    }
    return spectra, content["about"]


def write_landscapes(folder: Path, landscapes: Mapping[str, Landscape], about: str) -> Path:
    """A loss that is not finite is written as null."""
    models = {name: {"steps": given.steps, "losses": given.losses} for name, given in landscapes.items()}
    write_json(folder / LANDSCAPES, {"about": about, "landscapes": models})
    return folder / LANDSCAPES


def read_landscapes(folder: Path) -> tuple[dict[str, Landscape], str] | None:
    """(landscapes, about); None where the run wrote none."""
    path = folder / LANDSCAPES
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    landscapes = {
        name: Landscape(
            given["steps"], [[math.nan if loss is None else loss for loss in row] for row in given["losses"]]
        )
        for name, given in content["landscapes"].items()
    }
    return landscapes, content["about"]
