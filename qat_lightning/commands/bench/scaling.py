"""Measure how the baseline's step and that of one variant grow with length, rows, layers and processes."""

from __future__ import annotations

import gc
import json
import socket
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from qat_lightning.commands.bench.memory import peak_bytes, storage_bytes
from qat_lightning.commands.bench.shapes import Shape, shapes_for, takes_images
from qat_lightning.commands.bench.steps import Case, CaseBuilder
from qat_lightning.commands.bench.timing import Report, time_interleaved, torch_threads
from qat_lightning.commands.bench.training import (
    BASELINE,
    check_training,
    conditions,
    figures,
    make_builder,
    strict_compilation,
    time_cases,
)
from qat_lightning.commands.bench.variants import compose_plain, compose_variants
from qat_lightning.config.instantiate import suggest
from qat_lightning.config.schema import BenchConfig, ConfigError, Plain, RunConfig
from qat_lightning.io.files import write_text
from qat_lightning.models.module_paths import layer_paths

AXES = ("lengths", "rows", "layers", "processes")


def measure_scaling(config: BenchConfig, report: Report) -> Plain:
    """Measure seconds and peak bytes along each axis; everything else is as in `bench.shape` and the model.

    Returns: {…, "axes": {axis: {point: {"transformers": {"seconds", "peak"}, variant: {"seconds", "ratio", "peak"}}}}}. All
    points of one process are timed in turns; those of several processes one after the other, each with its own baseline.

    Raises:
        ConfigError: a point, a choice or a name that does not exist.
    """
    bench, name = config.bench, config.bench["variant"]
    check_training(bench)
    _check_axes(bench)
    plain = compose_plain(config)
    (variant,) = compose_variants(replace(config, bench=bench | {"only": [name]})).values()
    with torch_threads(config.threads), strict_compilation():
        described, axes = _measure_in_this_process(config, plain, variant, report)
    gc.collect()  # models and optimizers refer to each other; several processes need their memory
    for processes in bench["processes"]:
        report(f"timing: {processes} processes …")
        axes["processes"][str(processes)] = _measure_processes(config, plain, variant, processes)
    return described | {"baseline": BASELINE, "variant": name, "axes": axes}


def _check_axes(bench: Plain) -> None:
    for axis in AXES:
        points = bench[axis]
        if not isinstance(points, list) or any(type(point) is not int or point < 1 for point in points):
            raise ConfigError(f"bench.{axis}={points!r} must be a list of whole numbers, 1 or more, or [] for none")
    if bench["variant"] not in bench["variants"]:
        raise ConfigError(f"bench.variant={bench['variant']!r}: {suggest(str(bench['variant']), bench['variants'])}")
    if bench["compiled"] == "both":
        raise ConfigError("bench.compiled=both is for bench=training: set true or false")
    if not any(bench[axis] for axis in AXES):
        raise ConfigError(f"no points to time: set one of {', '.join(f'bench.{axis}' for axis in AXES)}")


def _measure_in_this_process(
    config: BenchConfig, plain: RunConfig, variant: RunConfig, report: Report
) -> tuple[Plain, dict[str, dict[str, Plain]]]:
    """Return the conditions and the figures of all axes but processes; the models are released at the end."""
    bench, name, builder = config.bench, config.bench["variant"], make_builder(config, plain)
    cases: dict[tuple[str, int, str], Case] = {}
    for axis, point, arguments in _points(builder, bench):
        report(f"building: {axis} {point} …")
        cases[axis, point, BASELINE] = builder.baseline(compiled=bench["compiled"], **arguments)
        cases[axis, point, name] = builder.variant(variant, compiled=bench["compiled"], **arguments)
        for which in (BASELINE, name):
            cases[axis, point, which].step()
    seconds = time_cases(bench | {"evaluation": False}, cases, report) if cases else {}
    axes: dict[str, dict[str, Plain]] = {axis: {} for axis in AXES if bench[axis]}
    for axis, point in dict.fromkeys((axis, point) for axis, point, _ in cases):
        own = {which: seconds["step", (axis, point, which)] for which in (BASELINE, name)}
        row = _rows(own, point if axis == "rows" else builder.shape[0])
        for which in row if bench["memory"] else ():
            case = cases[axis, point, which]
            row[which]["peak"] = storage_bytes(case.persistent()) + peak_bytes(case.step, builder.device)
        axes[axis][str(point)] = row
    return conditions(config, builder), axes


def _points(builder: CaseBuilder, bench: Plain) -> list[tuple[str, int, dict[str, Any]]]:
    """Return axis, point, and the arguments of the builder."""
    shape, model = builder.shape, builder.model
    depth = len(layer_paths(model))
    if deeper := [layers for layers in bench["layers"] if layers > depth]:
        raise ConfigError(f"bench.layers holds {deeper[0]}, but the model has {depth} layers")
    lengths: list[Shape] = [] if takes_images(model) else [(shape[0], tokens) for tokens in bench["lengths"]]
    if lengths:
        shapes_for(model.cpu(), [list(each) for each in lengths], "bench.lengths")
        model.to(builder.device)
    return [
        *(("lengths", each[1], {"shape": each}) for each in lengths),
        *(("rows", rows, {"shape": (rows, *shape[1:])}) for rows in bench["rows"]),
        *(("layers", layers, {"layers": layers}) for layers in bench["layers"]),
    ]


def _rows(seconds: Mapping[str, list[float]], samples: int) -> dict[str, Plain]:
    return {name: figures(own, seconds[BASELINE], samples) for name, own in seconds.items()}


def _measure_processes(config: BenchConfig, plain: RunConfig, variant: RunConfig, processes: int) -> Plain:
    """Return the figures of processes that train together; an error row if one of them fails."""
    on_cuda = config.bench["device"] != "cpu" and torch.cuda.is_available()
    try:
        if on_cuda and processes > torch.cuda.device_count():
            raise ConfigError(
                f"{processes} processes need as many CUDA devices, and there are {torch.cuda.device_count()}"
            )
        with TemporaryDirectory(prefix="qat_lightning_bench_") as folder:
            place = Path(folder) / "seconds.json"
            arguments = (processes, _free_port(), on_cuda, config, plain, variant, str(place))
            torch.multiprocessing.spawn(_time_process, arguments, nprocs=processes)
            seconds = json.loads(place.read_text())
    except Exception as error:  # the other figures are kept; the message of a process is at the end
        return {"error": f"{type(error).__name__}: … {' '.join(str(error).split())[-500:]}"}
    named = dict(zip((BASELINE, config.bench["variant"]), seconds, strict=True))
    return _rows(named, processes * config.bench["shape"][0])


def _time_process(
    rank: int, processes: int, port: int, on_cuda: bool, config: BenchConfig, plain: RunConfig, variant: RunConfig,
    place: str,
) -> None:  # fmt: skip
    """Time the steps in one of the processes; the first writes the seconds."""
    bench, device = config.bench, torch.device("cuda", rank) if on_cuda else torch.device("cpu")
    torch.set_num_threads(config.threads)
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("nccl" if on_cuda else "gloo", init_method=address, rank=rank, world_size=processes)
    # one builder for each: two DistributedDataParallel modules cannot share weights
    builders = [CaseBuilder(plain, tuple(bench["shape"]), device, bench["precision"]) for _ in range(2)]
    options: dict[str, Any] = {"wrap": partial(_parallel, device=device), "compiled": bench["compiled"]}
    with strict_compilation():
        cases = [builders[0].baseline(**options), builders[1].variant(variant, **options)]
        warmup = bench["warmup"] + 1 + bench["compiled"]
        calls = {number: case.step for number, case in enumerate(cases)}
        seconds = time_interleaved(calls, bench["repeats"], warmup, bench["untimed"], clock=bench["clock"])
    if rank == 0:
        write_text(Path(place), json.dumps(list(seconds.values())))
    distributed.barrier()
    distributed.destroy_process_group()


def _parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a model as a run does: an intervention leaves weights without gradients, and all processes have equal buffers."""
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, devices, find_unused_parameters=True, broadcast_buffers=False)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
