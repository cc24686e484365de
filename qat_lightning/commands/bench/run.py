"""Run one benchmark: measure, print a table, and write the figures."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rich.text import Text

from qat_lightning.commands.bench.inference import measure_inference
from qat_lightning.commands.bench.scaling import measure_scaling
from qat_lightning.commands.bench.tables import inference_table, scaling_table, training_table
from qat_lightning.commands.bench.training import measure_training
from qat_lightning.config.instantiate import suggest
from qat_lightning.config.schema import BenchConfig, ConfigError, Plain
from qat_lightning.io.files import write_json
from qat_lightning.io.screen import console

BENCHES = {
    "inference": (measure_inference, inference_table),
    "training": (measure_training, training_table),
    "scaling": (measure_scaling, scaling_table),
}
"""bench.name → the functions that measure and show it."""
WIDTH = 100
"""Columns where the output is not a terminal."""
PROCESSOR = Path("/proc/cpuinfo")
INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm")
"""Instructions for products of 8-bit numbers; without VNNI, AMX or asimddp these are hardly faster than float32."""
LIBRARIES = ("qat-lightning", "torch", "onnxruntime", "onnx", "transformers")


def run_bench(config: BenchConfig, command: Sequence[str]) -> None:
    """Print a table of what `bench.name` measures; with `output`, write all figures as JSON.

    `command` holds the overrides of the command line, printed with the figures.
    """
    name, output = config.bench["name"], config.output and Path(config.output)
    if name not in BENCHES:
        raise ConfigError(f"bench.name={name!r}: {suggest(str(name), BENCHES)}")
    if type(config.threads) is not int or config.threads < 1:
        raise ConfigError(f"threads={config.threads} must be 1 or more")
    if output and (output.is_dir() or not output.parent.is_dir()):
        raise ConfigError(f"output={output} must be a file in a folder that exists")
    measure, table = BENCHES[name]
    terminal = console()
    if not terminal.is_terminal:
        terminal.width = WIDTH
    with terminal.status("") as status:
        conditions = {"bench": name, "command": list(command), "machine": machine()}
        conditions["versions"] = {library: version(library) for library in LIBRARIES}
        results = conditions | measure(config, lambda line: status.update(Text(line)))
    terminal.print(table(results))
    if output:
        write_json(output, results)
        terminal.print(f"all figures: {output}", soft_wrap=True)


def machine() -> Plain:
    """Return the processor's name, the number of cores that this process may use, and the relevant instructions."""
    text = PROCESSOR.read_text(encoding="utf-8") if PROCESSOR.is_file() else ""  # Linux
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    known = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "processor": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": [name for name in INSTRUCTIONS if name in known],
    }
