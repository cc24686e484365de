"""Show measurements in the terminal, within 100 columns."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from qat_lightning.commands.bench.inference import ONNX
from qat_lightning.config.schema import Plain

NONE, COMPILED = "–", ", compiled"
"""A missing figure, and the end of the names of compiled rows, whose baseline is compiled as well."""
GROUPS = {
    "step": ("step", "10–90 %", "ratio", "rows/s"),
    "memory": ("peak", "ratio", "saved"),
    "evaluation": ("eval", "ratio"),
}
"""Columns for each measurement of a training step."""


def inference_table(results: Plain) -> Group:
    """Return a row for each runtime."""
    shapes = list(results["runtimes"][results["baseline"]]["speed"])
    table = _table("runtime", ["MiB", "ratio", "load s"])
    for shape in shapes:
        table.add_column(shape, justify="right", min_width=len("(1.00×)"))  # on a narrow terminal on a second line
    for name, runtime in results["runtimes"].items():
        size = [_mebibytes(runtime["bytes"], 1), _times(runtime["ratio"]), f"{runtime['load']['median']:.2f}"]
        speeds = [runtime["speed"][shape] for shape in shapes]
        cells = [f"{_milliseconds(speed['seconds']['median'])} ({speed['speedup']:.2f}×)" for speed in speeds]
        table.add_row(name, *size, *cells, style="bold" if name == ONNX else "")
    unit = f"ms a batch (rows × tokens; of images rows), median of {results['repeats']}; (×): against {results['baseline']}"
    return Group(*_heading(results, unit), table)


def training_table(results: Plain) -> Group:
    """Return a row for each variant, in the order of the configuration, and below the table the errors."""
    variants = results["variants"]
    measured = {name: row for name, row in variants.items() if "error" not in row}
    groups = [group for group in GROUPS if any(group in row for row in measured.values())]
    table = _table("variant", [name for group in groups for name in GROUPS[group]])
    for name, row in measured.items():
        baseline = baseline_of(name, results["baseline"])
        cells = [cell for group in groups for cell in _training_cells(group, row, variants.get(baseline, {}))]
        table.add_row(name, *cells, style="bold" if name == baseline else "")
    errors = [f"{name}: {row['error']}" for name, row in variants.items() if "error" in row]
    return Group(*_heading(results, *_step_units(results)), table, *errors)


def scaling_table(results: Plain) -> Group:
    """Return a row for each length, number of rows, number of layers and number of processes."""
    both = (results["baseline"], results["variant"])
    table, errors = _table("", [both[0], f"{both[1]} ms", "ratio", both[0], f"{both[1]} MiB", "ratio"]), []
    for label, row in ((f"{axis} {at}", row) for axis, rows in results["axes"].items() for at, row in rows.items()):
        if "error" in row:
            errors.append(f"{label}: {row['error']}")
            continue
        seconds = [_milliseconds(row[name]["seconds"]["median"]) for name in both]
        peaks = [row[name]["peak"] for name in both if "peak" in row[name]]
        sizes = [*map(_mebibytes, peaks), _times(peaks[1] / peaks[0])] if peaks else [NONE] * 3
        table.add_row(label, *seconds, _times(row[both[1]]["ratio"]), *sizes)
    return Group(*_heading(results, *_step_units(results)), table, *errors)


def baseline_of(name: str, baseline: str) -> str:
    """Return the row that a row's ratios refer to; that of a compiled row is compiled as well."""
    return baseline + COMPILED if name.endswith(COMPILED) else baseline


def _training_cells(group: str, row: Plain, baseline: Plain) -> list[str]:
    if group == "memory":
        memory, other = row[group], baseline.get(group)
        ratio = memory["peak"] / other["peak"] if other else None
        return [_mebibytes(memory["peak"]), _times(ratio), _mebibytes(memory["saved"])]
    seconds, ratio = row[group]["seconds"], _times(row[group]["ratio"])
    if group == "evaluation":
        return [_milliseconds(seconds["median"]), ratio]
    low_high = f"{_milliseconds(seconds['low'])}–{_milliseconds(seconds['high'])}"
    return [_milliseconds(seconds["median"]), low_high, ratio, f"{row[group]['samples_per_second']:.1f}"]


def _heading(results: Plain, *units: str) -> list[Text]:
    """Return the command, the model, the machine, the versions, and the units."""
    machine, model = results["machine"], results["model"]
    instructions = f" ({', '.join(machine['instructions'])})" if machine["instructions"] else ""
    lines = [
        shlex.join(["python", "-m", "qat_lightning.bench", *results["command"]]),
        f"{model['family']}, {model['parameters']:,} parameters, random weights; threads: {results['threads']}",
        f"{machine['processor']}, {machine['cores']} cores{instructions}",
        ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        *units,
    ]
    return [Text(line, overflow="fold") for line in lines]


def _step_units(results: Plain) -> list[str]:
    milliseconds = "ms of processor time" if results["clock"] == "processor" else "ms"
    return [
        f"steps of {results['shape']} (rows × tokens; of images rows) on {results['device']}, {results['precision']}",
        f"{milliseconds}, median of {results['repeats']}; MiB; ratio: to {results['baseline']}",
    ]


def _table(first: str, names: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column(first, no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _mebibytes(bytes: int, digits: int = 0) -> str:
    size = bytes / 2**20
    return f"{size:.{digits if size >= 100 else digits + 1}f}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.{0 if seconds >= 0.1 else 1}f}"


def _times(ratio: float | None) -> str:
    return NONE if ratio is None else f"{ratio:.2f}×"
