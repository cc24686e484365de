"""Read the metrics that Lightning's CSVLogger wrote during the stages of a run."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qat_lightning.io.documents import DocumentError, read_bytes

Row = dict[str, float]

STEP_SIZES = "step_sizes"
"""Prefix of the columns `step_sizes/<kind>/<layer>`."""

LARGEST = 3.5e38
"""Larger numbers are ignored: logged values are float32, and plots of much larger ones overflow."""

LONGEST = 2**28
"""Largest log in bytes; 100,000 rows of 100 columns have 200 MB."""


@dataclass(frozen=True)
class StageHistory:
    """The log of one stage."""

    name: str
    steps: int  # optimizer steps of the stage
    rows: list[Row]  # by step; CSV column → number. "step" counts inside the stage, from 0

    def series(self, column: str) -> tuple[list[float], list[float]]:
        """Return (steps inside the stage, values) of a column that can be drawn."""
        logged = [(row["step"], row[column]) for row in self.rows if abs(row.get(column, math.nan)) <= LARGEST]
        return [step for step, _ in logged], [value for _, value in logged]


def read_history(folder: Path, stages: Mapping[str, int]) -> list[StageHistory]:
    """Read `logs/<stage>/metrics.csv` of each stage (→ its steps), and `logs/<stage>.1`, `.2`, … of its resumptions.

    If two files have the same column at the same step, the later one counts: a resumed run repeats the steps since its
    checkpoint. A stage without a log has no rows.
    """
    return [StageHistory(name, steps, _merged(_logs(folder / "logs", name))) for name, steps in stages.items()]


def _logs(folder: Path, stage: str) -> list[Path]:
    """Return the stage's files, oldest first: `train.10` after `train.2`, and without the stage `train_more`."""
    numbered = {0: folder / stage}
    for path in folder.glob(f"{stage}.*"):
        if (number := path.name.removeprefix(f"{stage}.")).isdecimal():
            numbered[int(number)] = path
    files = [numbered[number] / "metrics.csv" for number in sorted(numbered)]
    return [file for file in files if file.is_file()]


def _merged(files: Iterable[Path]) -> list[Row]:
    rows: dict[float, Row] = {}
    for file in files:
        for cells in _read(file):
            row = _numbers(cells)
            if abs(row.get("step", math.nan)) <= LARGEST:
                rows.setdefault(row["step"], {}).update(row)
    return [rows[step] for step in sorted(rows)]


def _read(file: Path) -> list[dict[str | None, object]]:
    """Return the rows of a log without lines of zero bytes, which a power failure can leave; warn about them."""
    try:
        lines = read_bytes(file, LONGEST).decode(errors="replace").splitlines()
    except DocumentError as error:
        warnings.warn(f"{error}: report.md shows no curves of this file", stacklevel=2)
        return []
    sound = [line for line in lines if "\0" not in line]
    rows: list[dict[str | None, object]] = []
    try:
        rows.extend(csv.DictReader(sound))
    except csv.Error:
        sound = []
    if len(sound) < len(lines):
        warnings.warn(f"{file} is damaged: the curves in report.md have gaps", stacklevel=2)
    return rows


def _numbers(cells: Mapping[str | None, object]) -> Row:
    """Return the cells that are numbers: a killed run may leave an incomplete last line."""
    row: Row = {}
    for column, text in cells.items():
        if column and isinstance(text, str):
            with suppress(ValueError):
                row[column] = float(text)
    return row
