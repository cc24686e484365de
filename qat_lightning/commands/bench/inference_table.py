"""Figures for the terminal, in 100 columns."""

from __future__ import annotations

import shlex

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from qat_lightning.commands.bench.runtimes import ONNX
from qat_lightning.config.schema import Plain


def inference_table(results: Plain) -> Group:
    """What was run where, and a row for each runtime."""
    shapes = list(results["runtimes"][results["baseline"]]["speed"])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column("runtime", no_wrap=True)
    for name in ("MiB", "ratio", "load s"):
        table.add_column(name, justify="right", no_wrap=True)
    for shape in shapes:
        table.add_column(shape, justify="right", min_width=len("(1.00×)"))  # brackets go below where it is narrow
    for name, runtime in results["runtimes"].items():
        size = [_size(runtime["bytes"]), f"{runtime['ratio']:.2f}×", f"{runtime['load']['median']:.2f}"]
        speed = [_speed(runtime["speed"][shape]) for shape in shapes]
        table.add_row(name, *size, *speed, style="bold" if name == ONNX else "")
    unit = f"ms a batch (rows × tokens; of images rows), median of {results['repeats']}; (×): against {results['baseline']}"
    return Group(*heading(results, unit), table)


def heading(results: Plain, *units: str) -> list[Text]:
    """The command, the model, the machine, the versions, and what the figures are."""
    machine, model = results["machine"], results["model"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    instructions = f" ({', '.join(machine['instructions'])})" if machine["instructions"] else ""
    lines = [
        shlex.join(["python", "-m", "qat_lightning.bench", *results["command"]]),
        f"{model['family']}, {model['parameters']:,} parameters, random weights; threads: {results['threads']}",
        f"{machine['processor']}, {machine['cores']} cores{instructions}",
        versions,
        *units,
    ]
    return [Text(line, overflow="fold") for line in lines]


def _size(bytes: int) -> str:
    size = bytes / 2**20
    return f"{size:.{1 if size >= 100 else 2}f}"


def _speed(speed: Plain) -> str:
    return f"{milliseconds(speed['seconds']['median'])} ({speed['speedup']:.2f}×)"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.{0 if seconds >= 0.1 else 1}f}"
