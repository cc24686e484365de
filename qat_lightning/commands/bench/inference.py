"""Measure the bytes, loading time and speed of a model in float32 and as the exported student of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from qat_lightning.commands.bench.runtimes import (
    BASELINE,
    Runtime,
    build_calibrated,
    build_teacher,
    logits,
    write_runtimes,
)
from qat_lightning.commands.bench.shapes import Shape, check_counts, check_shapes, label, random_batch, shapes_for
from qat_lightning.commands.bench.timing import Report, spread, time_interleaved, torch_threads
from qat_lightning.config.schema import BenchConfig, Plain
from qat_lightning.models.size import bits


def measure_inference(config: BenchConfig, report: Report) -> Plain:
    """Measure each runtime in this process, on the same inputs.

    Returns: {"model", "baseline", "threads", …, "runtimes": {name: {"bytes", "ratio", "load", "difference", "speed": {shape:
    {"seconds", "speedup"}}}}}

    Raises:
        ValueError: a count below its minimum, a shape that the model cannot read, a decoder, or a student that cannot be
            exported.
    """
    bench, threads = config.bench, config.threads
    check_counts(bench, {"repeats": 1, "loads": 1, "warmup": 0})
    check_shapes(bench["shapes"])
    with torch_threads(threads), TemporaryDirectory(prefix="qat_lightning_bench_") as folder:
        report("building and exporting …")
        teacher = build_teacher(config)
        shapes = shapes_for(teacher, bench["shapes"])
        student = build_calibrated(config, teacher)
        runtimes = write_runtimes(teacher, student, Path(folder), threads)
        batches = {shape: random_batch(teacher, shape, seed=1) for shape in shapes}
        model = {
            "family": teacher.config.model_type,
            "parameters": sum(parameter.numel() for parameter in teacher.parameters()),
            "bits": bits(student),
        }
        del teacher, student
        return {
            "model": model,
            "baseline": BASELINE,
            "threads": threads,
            **{name: bench[name] for name in ("repeats", "warmup", "loads")},
            "runtimes": _measure(bench, runtimes, batches, report),
        }


def _measure(
    bench: Plain, runtimes: Mapping[str, Runtime], batches: Mapping[Shape, dict[str, Tensor]], report: Report
) -> Plain:
    """Return the figures of each runtime. Each round has all shapes, so that a disturbance affects all of them."""
    report("loading …")
    loading = {name: runtime.load for name, runtime in runtimes.items()}
    loads = time_interleaved(loading, bench["loads"], warmup=1, untimed=0)
    models = {name: runtime.load() for name, runtime in runtimes.items()}
    differences = _differences(runtimes, models, batches)
    calls = {
        (shape, name): partial(logits, model, batch)
        for shape, batch in batches.items()
        for name, model in models.items()
    }
    seconds = time_interleaved(
        calls, bench["repeats"], bench["warmup"], report=lambda line: report(f"timing: {line} …")
    )
    speeds = {key: spread(each) for key, each in seconds.items()}
    return {
        name: {
            "bytes": runtime.bytes,
            "ratio": runtimes[BASELINE].bytes / runtime.bytes,
            "load": asdict(spread(loads[name])),
            "difference": differences.get(name),
            "speed": {
                label(shape): {
                    "seconds": asdict(speeds[shape, name]),
                    "speedup": speeds[shape, BASELINE].median / speeds[shape, name].median,
                }
                for shape in batches
            },
        }
        for name, runtime in runtimes.items()
    }


def _differences(
    runtimes: Mapping[str, Runtime], models: Mapping[str, nn.Module], batches: Mapping[Shape, dict[str, Tensor]]
) -> dict[str, Plain]:
    """Return how much each runtime's logits differ from those of its reference, and the largest logit for comparison."""
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
