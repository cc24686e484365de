"""What it costs to keep, load and run a model: in float32, and as the student that a run would make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from qat_lightning.commands.bench.environment import torch_threads
from qat_lightning.commands.bench.runtimes import (
    BASELINE,
    Runtime,
    build_calibrated,
    build_teacher,
    logits,
    write_runtimes,
)
from qat_lightning.commands.bench.shapes import Shape, check_counts, check_shapes, label, random_batch, shapes_for
from qat_lightning.commands.bench.timing import Spread, side_by_side
from qat_lightning.config.schema import BenchConfig, Plain
from qat_lightning.models.size import bits

Say = Callable[[str], None]
"""Takes a line for the terminal, in place of the one before."""


def measure_inference(config: BenchConfig, say: Say) -> Plain:
    """Bytes, seconds to load and seconds a batch of each runtime, all in this process and on the same inputs.

    Returns what becomes JSON: {"model", "baseline", "threads", …, "runtimes": {name: {"bytes", "ratio", "load",
    "difference", "speed": {shape: {"seconds", "speedup"}}}}}.

    Raises:
        ValueError: numbers or shapes that cannot be timed; a decoder; a student that cannot be exported.
    """
    bench, threads = config.bench, config.threads
    _check(bench)
    with torch_threads(threads), TemporaryDirectory(prefix="qat_lightning_bench_") as folder:
        say("building and exporting …")
        teacher = build_teacher(config)
        shapes = shapes_for(teacher, bench["shapes"])
        student = build_calibrated(config, teacher)
        runtimes = write_runtimes(teacher, student, Path(folder), threads)
        batches = {shape: random_batch(teacher, shape, seed=1) for shape in shapes}
        about = _about(teacher, student)
        del teacher, student
        say("loading …")
        loads = side_by_side(
            {name: runtime.load for name, runtime in runtimes.items()}, bench["loads"], warmup=1, untimed=0
        )
        models = {name: runtime.load() for name, runtime in runtimes.items()}
        differences = _differences(runtimes, models, batches)
        speeds = _speeds(bench, models, batches, say)
        return {
            "model": about,
            "baseline": BASELINE,
            "threads": threads,
            **{name: bench[name] for name in ("repeats", "warmup", "loads")},
            "runtimes": {
                name: {
                    "bytes": runtime.bytes,
                    "ratio": runtimes[BASELINE].bytes / runtime.bytes,
                    "load": asdict(loads[name]),
                    "difference": differences.get(name),
                    "speed": {label(shape): _speed(speeds, shape, name) for shape in shapes},
                }
                for name, runtime in runtimes.items()
            },
        }


def _check(bench: Plain) -> None:
    check_counts(bench, {"repeats": 1, "loads": 1, "warmup": 0})
    check_shapes(bench["shapes"])


def _about(teacher: nn.Module, student: nn.Module) -> Plain:
    return {
        "family": teacher.config.model_type,  # type: ignore[union-attr]
        "parameters": sum(parameter.numel() for parameter in teacher.parameters()),
        "bits": bits(student),
    }


def _differences(
    runtimes: Mapping[str, Runtime], models: Mapping[str, nn.Module], batches: Mapping[Shape, dict[str, Tensor]]
) -> dict[str, Plain]:
    """How far each runtime's logits are from its reference's, and how large those are: the proof of what was timed."""
    answers = {name: torch.cat([logits(model, batch) for batch in batches.values()]) for name, model in models.items()}
    return {
        name: {
            "from": runtime.reference,
            "largest": float((answers[name] - answers[runtime.reference]).abs().max()),
            "of_logits_up_to": float(answers[runtime.reference].abs().max()),
        }
        for name, runtime in runtimes.items()
        if runtime.reference is not None
    }


def _speeds(
    bench: Plain, models: Mapping[str, nn.Module], batches: Mapping[Shape, dict[str, Tensor]], say: Say
) -> dict[tuple[Shape, str], Spread]:
    """(shape, runtime) → seconds a batch. A round is of all shapes: what disturbs a while disturbs none of them alone."""
    calls = {
        (shape, name): partial(logits, model, batch)
        for shape, batch in batches.items()
        for name, model in models.items()
    }
    return side_by_side(calls, bench["repeats"], bench["warmup"], say=lambda line: say(f"timing: {line} …"))


def _speed(speeds: Mapping[tuple[Shape, str], Spread], shape: Shape, name: str) -> Plain:
    own = speeds[shape, name]
    return {"seconds": asdict(own), "speedup": speeds[shape, BASELINE].median / own.median}
