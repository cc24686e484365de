"""What an earlier run has left in a run folder is put out of the way, not mixed in and not thrown away."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from qat_lightning.analysis.result_files import LANDSCAPES, SPECTRA

MADE = (SPECTRA, LANDSCAPES, Path("metrics.json"), Path("report.md"), Path("export"), Path("evaluation"))
"""What is made of the stages' results, below the run folder."""


def set_aside(folder: Path, stage: str) -> Path | None:
    """Move the checkpoints and logs of a stage of this name, and what was made of it, to `earlier/<number>`.

    For a stage that has not begun: whatever bears its name is of another run, or does not say whose it is. Returns where
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
