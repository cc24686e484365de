"""The command: measure, print, and write what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from qat_lightning.commands.bench.environment import machine, versions
from qat_lightning.commands.bench.inference import measure_inference
from qat_lightning.commands.bench.inference_table import inference_table
from qat_lightning.commands.bench.scaling import measure_scaling
from qat_lightning.commands.bench.training_step import measure_training
from qat_lightning.commands.bench.training_table import scaling_table, training_table
from qat_lightning.config.instantiate import suggest
from qat_lightning.config.schema import BenchConfig, ConfigError
from qat_lightning.io.files import write_json
from qat_lightning.io.screen import console

BENCHES = {
    "inference": (measure_inference, inference_table),
    "training": (measure_training, training_table),
    "scaling": (measure_scaling, scaling_table),
}
"""bench.name → what measures, and what shows it."""

WIDTH = 100
"""Columns where there is no terminal to fill."""


def run_bench(config: BenchConfig, command: Sequence[str]) -> None:
    """Print a table of what `bench.name` measures; with `output`, write all of it as JSON.

    Args:
        command: the overrides of the command line, to be printed with the figures.

    Raises:
        ConfigError: an unknown bench, an impossible number of threads, an output that has no folder.
    """
    name, output = config.bench["name"], config.output and Path(config.output)
    if name not in BENCHES:
        raise ConfigError(f"bench.name={name!r}: {suggest(str(name), BENCHES)}")
    if type(config.threads) is not int or config.threads < 1:
        raise ConfigError(f"threads={config.threads} must be 1 or more")
    if output and (output.is_dir() or not output.parent.is_dir()):
        raise ConfigError(f"output={output} must be a file in a folder that exists")
    measure, table = BENCHES[name]
    shown = console()
    if not shown.is_terminal:
        shown.width = WIDTH
    with shown.status("") as status:
        results = {
            "bench": name,
            "command": list(command),
            "machine": machine(),
            "versions": versions(),
            **measure(config, lambda words: status.update(Text(words))),
        }
    shown.print(table(results))
    if output:
        write_json(output, results)
        shown.print(f"all figures: {output}", soft_wrap=True)
