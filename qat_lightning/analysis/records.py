"""`analysis/*.json` of a run folder: written while it trains, read by its report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from qat_lightning.analysis.landscape import Landscape

SPECTRA, LANDSCAPES = Path("analysis/hessian.json"), Path("analysis/landscape.json")
"""Below the run folder."""

Spectra = Mapping[str, Sequence[Sequence[float]]]
"""Model → for each mini-batch its top eigenvalues."""


def write_spectra(folder: Path, spectra: Spectra, about: str) -> Path:
    """Args: about: how they were made, for the reader."""
    return _write(folder / SPECTRA, {"about": about, "eigenvalues": spectra})


def read_spectra(folder: Path) -> tuple[dict[str, list[list[float]]], str] | None:
    """(spectra, about); None where the run wrote none."""
    path = folder / SPECTRA
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["eigenvalues"], content["about"]


def write_landscapes(folder: Path, landscapes: Mapping[str, Landscape], about: str) -> Path:
    """A loss that is not finite is written as null: JSON has no other word for it."""
    models = {
        name: {
            "steps": given.steps,
            "losses": [[loss if math.isfinite(loss) else None for loss in row] for row in given.losses],
        }
        for name, given in landscapes.items()
    }
    return _write(folder / LANDSCAPES, {"about": about, "landscapes": models})


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


def _write(path: Path, content: object) -> Path:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
    temporary.replace(path)
    return path
