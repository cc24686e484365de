"""Move the files of an earlier run in a run folder aside, instead of mixing or deleting them."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from qat_lightning.analysis.result_files import LANDSCAPES, SPECTRA

MADE = (SPECTRA, LANDSCAPES, Path("metrics.json"), Path("report.md"), Path("export"), Path("evaluation"))
"""Files below the run folder that are made from the results of stages."""


def set_aside(folder: Path, stage: str) -> Path | None:
    """Move the checkpoints and logs of a stage of this name, and what was made of it, to `earlier/<number>`.

    For a stage that has not begun: files with its name belong to another run, or to an unknown one. Returns where
    to; None where there was nothing.
    """
    kept = [folder / "checkpoints" / stage, *(folder / "checkpoints").glob(f"{stage}.*")]
    logs = [folder / "logs" / stage, *(folder / "logs").glob(f"{stage}.*")]
    left = [path for path in (*kept, *logs, *(folder / made for made in MADE)) if path.exists()]
    if not left:
        return None
    to = _next(folder / "earlier")
    for path in left:
        place = to / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    rank_zero_warn(f"{folder} holds results of an earlier run: they are in {to} from now on")
    return to


def _next(earlier: Path) -> Path:
    """A new folder, numbered after the last: numbers between may be missing, and none is used twice."""
    numbers = [int(path.name) for path in earlier.glob("*") if path.name.isdecimal()]
    to = earlier / str(1 + max(numbers, default=0))
    to.mkdir(parents=True)
    return to
