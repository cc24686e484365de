"""Measure how the baseline's step and that of one variant grow with length, rows, layers and processes."""

from __future__ import annotations

import gc
import json
import socket
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from qat_lightning.commands.bench.measures import Report, peak_bytes, storage_bytes, time_interleaved, torch_threads
from qat_lightning.commands.bench.settings import ScalingSettings, read_settings, shapes_for, takes_images
from qat_lightning.commands.bench.steps import Case, CaseBuilder
from qat_lightning.commands.bench.training import (
    BASELINE,
    NO_METHOD,
    compose_run,
    conditions,
    figures,
    make_builder,
    strict_compilation,
    time_cases,
)
from qat_lightning.config.instantiate import suggest
from qat_lightning.config.schema import BenchConfig, ConfigError, Plain, RunConfig
from qat_lightning.io.files import write_text
from qat_lightning.models.module_paths import layer_paths


def measure_scaling(config: BenchConfig, report: Report) -> Plain:
    """Measure seconds and peak bytes along each axis; everything else is as in `bench.shape` and the model.

    Returns: {…, "axes": {axis: {point: {"transformers": {"seconds", "peak"}, variant: {"seconds", "ratio", "peak"}}}}}. All
    points of one process are timed in turns; those of several processes one after the other, each with its own baseline.
    """
    settings = read_settings(ScalingSettings, config.bench)
    name = settings.variant
    if name not in settings.variants:
        raise ConfigError(f"bench.variant={name!r}: {suggest(name, settings.variants)}")
    if settings.compiled == "both":
        raise ConfigError("bench.compiled=both is for bench=training: set true or false")
    settings.evaluation = False
    plain = compose_run(config, NO_METHOD)
    variant = compose_run(config, settings.variants[name], f"bench.variants.{name}")
    with torch_threads(config.threads), strict_compilation():
        described, axes = _measure_in_this_process(config, settings, plain, variant, report)
    gc.collect()  # models and optimizers refer to each other; several processes need their memory
    for processes in settings.processes:
        report(f"timing: {processes} processes …")
        row = _measure_processes(config.threads, settings, plain, variant, processes)
        axes.setdefault("processes", {})[str(processes)] = row
    return described | {"baseline": BASELINE, "variant": name, "axes": axes}


def _measure_in_this_process(
    config: BenchConfig, settings: ScalingSettings, plain: RunConfig, variant: RunConfig, report: Report
) -> tuple[Plain, dict[str, dict[str, Plain]]]:
    """Return the conditions and the figures of all axes but processes; the models are released at the end."""
    builder, names = make_builder(settings, plain), (BASELINE, settings.variant)
    points, cases = _points(builder, settings), dict[tuple[str, int, str], Case]()
    for axis, point, arguments in points:
        report(f"building: {axis} {point} …")
        cases[axis, point, BASELINE] = builder.baseline(compiled=bool(settings.compiled), **arguments)
        cases[axis, point, settings.variant] = builder.variant(variant, compiled=bool(settings.compiled), **arguments)
        for name in names:
            cases[axis, point, name].step()
    seconds = time_cases(settings, cases, report) if cases else {}
    axes: dict[str, dict[str, Plain]] = {}
    for axis, point, _ in points:
        row = axes.setdefault(axis, {})[str(point)] = {}
        for name in names:
            own, baseline = (seconds["step", (axis, point, which)] for which in (name, BASELINE))
            row[name] = figures(own, baseline, point if axis == "rows" else builder.shape[0])
            if settings.memory:
                case = cases[axis, point, name]
                row[name]["peak"] = storage_bytes(case.persistent()) + peak_bytes(case.step, builder.device)
    return conditions(config, builder), axes


def _points(builder: CaseBuilder, settings: ScalingSettings) -> list[tuple[str, int, dict[str, Any]]]:
    """Return axis, point, and the arguments of the builder."""
    shape, model = builder.shape, builder.model
    depth = len(layer_paths(model))
    if deeper := [layers for layers in settings.layers if layers > depth]:
        raise ConfigError(f"bench.layers holds {deeper[0]}, but the model has {depth} layers")
    lengths = [] if takes_images(model) else [[shape[0], tokens] for tokens in settings.lengths]
    if lengths:
        shapes_for(model.cpu(), lengths, "bench.lengths")
        model.to(builder.device)
    return [
        *(("lengths", each[1], {"shape": tuple(each)}) for each in lengths),
        *(("rows", rows, {"shape": (rows, *shape[1:])}) for rows in settings.rows),
        *(("layers", layers, {"layers": layers}) for layers in settings.layers),
    ]


def _measure_processes(
    threads: int, settings: ScalingSettings, plain: RunConfig, variant: RunConfig, processes: int
) -> Plain:
    """Return the figures of processes that train together; an error row if one of them fails."""
    on_cuda = settings.device != "cpu" and torch.cuda.is_available()
    try:
        with TemporaryDirectory(prefix="qat_lightning_bench_") as folder, socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port, place = int(found.getsockname()[1]), Path(folder) / "seconds.json"
            found.close()
            arguments = (processes, port, on_cuda, threads, settings, plain, variant, str(place))
            torch.multiprocessing.spawn(_time_process, arguments, nprocs=processes)
            baseline, own = json.loads(place.read_text())
    except Exception as error:  # the other figures are kept; the message of a process is at the end
        return {"error": f"{type(error).__name__}: … {' '.join(str(error).split())[-500:]}"}
    samples = processes * settings.shape[0]
    return {BASELINE: figures(baseline, baseline, samples), settings.variant: figures(own, baseline, samples)}


def _time_process(
    rank: int, processes: int, port: int, on_cuda: bool, threads: int, settings: ScalingSettings, plain: RunConfig,
    variant: RunConfig, place: str,
) -> None:  # fmt: skip
    """Time the steps in one of the processes; the first writes the seconds."""
    device = torch.device("cuda", rank) if on_cuda else torch.device("cpu")
    torch.set_num_threads(threads)
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("nccl" if on_cuda else "gloo", init_method=address, rank=rank, world_size=processes)
    # one builder for each: two DistributedDataParallel modules cannot share weights
    builders = [CaseBuilder(plain, tuple(settings.shape), device, settings.precision) for _ in range(2)]
    # as a run does: an intervention leaves weights without gradients, and all processes have equal buffers
    wrap = partial(
        DistributedDataParallel,
        device_ids=[rank] if on_cuda else None,
        find_unused_parameters=True,
        broadcast_buffers=False,
    )
    options: dict[str, Any] = {"wrap": wrap, "compiled": bool(settings.compiled)}
    with strict_compilation():
        cases = [builders[0].baseline(**options), builders[1].variant(variant, **options)]
        warmup = settings.warmup + 1 + bool(settings.compiled)
        calls = {number: case.step for number, case in enumerate(cases)}
        seconds = time_interleaved(calls, settings.repeats, warmup, settings.untimed, clock=settings.clock)
    if rank == 0:
        write_text(Path(place), json.dumps(list(seconds.values())))
    distributed.barrier()
    distributed.destroy_process_group()
