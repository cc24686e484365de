"""Figures of training steps for the terminal, in 100 columns."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.table import Table

from qat_lightning.commands.bench.inference_table import heading, milliseconds
from qat_lightning.config.schema import Plain

STEP = ("step", "10–90 %", "ratio", "rows/s")
MEMORY = ("peak", "ratio", "saved")
EVALUATION = ("eval", "ratio")
NONE, COMPILED = "–", ", compiled"
"""What stands for no figure, and what is added to the names of compiled rows, whose baseline is compiled as well."""


def training_table(results: Plain) -> Group:
    """What was run where, and a row for each variant, in the order of the configuration."""
    variants = results["variants"]
    measured = [row for row in variants.values() if "error" not in row]
    groups = [
        (key, names)
        for key, names in (("step", STEP), ("memory", MEMORY), ("evaluation", EVALUATION))
        if any(key in row for row in measured)
    ]
    table = _table("variant", [name for _, names in groups for name in names])
    for name, row in variants.items():
        if "error" not in row:
            compared = beside(name, results["baseline"])
            cells = [cell for key, _ in groups for cell in _CELLS[key](row, variants.get(compared, {}))]
            table.add_row(name, *cells, style="bold" if name == compared else "")
    failed = [f"{name}: {row['error']}" for name, row in variants.items() if "error" in row]
    return Group(*heading(results, *_unit(results)), table, *failed)


def beside(name: str, baseline: str) -> str:
    """The row that a row's ratios are against: a compiled one's is compiled as well."""
    return baseline + COMPILED if name.endswith(COMPILED) else baseline


def scaling_table(results: Plain) -> Group:
    """What was run where, and a row for each length, number of rows, layers and processes."""
    name = results["variant"]
    table = _table("", [results["baseline"], f"{name} ms", "ratio", results["baseline"], f"{name} MiB", "ratio"])
    for axis, points in results["axes"].items():
        for point, row in points.items():
            if "error" in row:
                table.add_row(f"{axis} {point}", *[NONE] * 6)
                continue
            plain, own = row[results["baseline"]], row[name]
            seconds = [milliseconds(each["seconds"]["median"]) for each in (plain, own)]
            peaks = [each.get("peak") for each in (plain, own)]
            sizes = [_mebibytes(peak) if peak else NONE for peak in peaks]
            ratio = f"{peaks[1] / peaks[0]:.2f}×" if all(peaks) else NONE
            table.add_row(f"{axis} {point}", *seconds, f"{own['ratio']:.2f}×", *sizes, ratio)
    failed = [
        f"{axis} {point}: {row['error']}"
        for axis, points in results["axes"].items()
        for point, row in points.items()
        if "error" in row
    ]
    return Group(*heading(results, *_unit(results)), table, *failed)


def _unit(results: Plain) -> list[str]:
    milliseconds = "ms of processor time" if results["clock"] == "processor" else "ms"
    return [
        f"steps of {results['shape']} (rows × tokens; of images rows) on {results['device']}, {results['precision']}",
        f"{milliseconds}, median of {results['repeats']}; MiB; ratio: to {results['baseline']}",
    ]


def _table(first: str, names: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column(first, no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _step(row: Plain, baseline: Plain) -> list[str]:
    seconds = row["step"]["seconds"]
    spread = f"{milliseconds(seconds['low'])}–{milliseconds(seconds['high'])}"
    return [
        milliseconds(seconds["median"]),
        spread,
        _times(row["step"]["ratio"]),
        f"{row['step']['samples_per_second']:.1f}",
    ]


def _memory(row: Plain, baseline: Plain) -> list[str]:
    memory, other = row["memory"], baseline.get("memory")
    ratio = _times(memory["peak"] / other["peak"] if other else None)
    return [_mebibytes(memory["peak"]), ratio, _mebibytes(memory["saved"])]


def _evaluation(row: Plain, baseline: Plain) -> list[str]:
    return [milliseconds(row["evaluation"]["seconds"]["median"]), _times(row["evaluation"]["ratio"])]


def _mebibytes(bytes: int) -> str:
    size = bytes / 2**20
    return f"{size:.{0 if size >= 100 else 1}f}"


def _times(ratio: float | None) -> str:
    return NONE if ratio is None else f"{ratio:.2f}×"


_CELLS = {"step": _step, "memory": _memory, "evaluation": _evaluation}
