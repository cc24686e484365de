"""How the baseline's step and a variant's grow with length, rows, layers and processes."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qat_lightning.commands.bench.cases import Case, Workshop
from qat_lightning.commands.bench.distributed import seconds_of_processes
from qat_lightning.commands.bench.environment import torch_threads
from qat_lightning.commands.bench.memory import peak_bytes, storages
from qat_lightning.commands.bench.shapes import Shape, check_shapes, shapes_for, takes_images
from qat_lightning.commands.bench.training_step import (
    BASELINE,
    Say,
    about,
    check_training,
    compiled_or_told,
    figures,
    opened,
    timed,
)
from qat_lightning.commands.bench.variants import compose_plain, compose_variants
from qat_lightning.config.instantiate import suggest
from qat_lightning.config.schema import BenchConfig, ConfigError, Plain, RunConfig
from qat_lightning.models.module_paths import layer_paths

AXES = ("lengths", "rows", "layers", "processes")


def measure_scaling(config: BenchConfig, say: Say) -> Plain:
    """Seconds and peak bytes along each axis, all else as `bench.shape` and the model say.

    Returns what becomes JSON: {…, "axes": {axis: {point: {"transformers": {"seconds", "peak"}, variant: {"seconds",
    "ratio", "peak"}}}}}. All points of one process are timed side by side; those of several are timed one after the
    other, each with its own baseline beside it.

    Raises:
        ConfigError: numbers or names that cannot be timed.
    """
    bench = config.bench
    check_training(bench)
    _check(bench)
    plain, name = compose_plain(config), bench["variant"]
    (variant,) = compose_variants(replace(config, bench=bench | {"only": [name]})).values()
    with torch_threads(config.threads), compiled_or_told():
        told, axes = _in_this_process(config, plain, variant, say)
    gc.collect()  # of models and optimizers that hold each other, or several processes have no room beside this one
    for processes in bench["processes"]:
        say(f"timing: {processes} processes …")
        axes["processes"][str(processes)] = _of_processes(config, plain, variant, processes)
    return told | {"baseline": BASELINE, "variant": name, "axes": axes}


def _in_this_process(
    config: BenchConfig, plain: RunConfig, variant: RunConfig, say: Say
) -> tuple[Plain, dict[str, dict[str, Plain]]]:
    """What the figures depend on, and those of all axes but processes; its models are gone when it returns."""
    bench, name = config.bench, config.bench["variant"]
    workshop = opened(config, plain)
    cases = _cases(workshop, variant, bench, say)
    seconds = timed(bench | {"evaluation": False}, cases, say) if cases else {}
    axes: dict[str, dict[str, Plain]] = {axis: {} for axis in AXES if bench[axis]}
    for axis, point in dict.fromkeys((axis, point) for axis, point, _ in cases):
        lists = {which: seconds["step", (axis, point, which)] for which in (BASELINE, name)}
        peaks = {which: _peak(cases[axis, point, which], workshop) for which in lists if bench["memory"]}
        axes[axis][str(point)] = _row(lists, peaks, point if axis == "rows" else workshop.shape[0])
    return about(config, workshop), axes


def _check(bench: Plain) -> None:
    for axis in AXES:
        points = bench[axis]
        if not isinstance(points, list) or any(type(point) is not int or point < 1 for point in points):
            raise ConfigError(f"bench.{axis}={points!r} must be a list of whole numbers, 1 or more, or [] for none")
    if bench["variant"] not in bench["variants"]:
        raise ConfigError(f"bench.variant={bench['variant']!r}: {suggest(str(bench['variant']), bench['variants'])}")
    if bench["compiled"] == "both":
        raise ConfigError("bench.compiled=both is for bench=training: give true or false")
    check_shapes([bench["shape"]], "bench.shape")
    if not any(bench[axis] for axis in AXES):
        raise ConfigError(f"nothing to time: give points to one of {', '.join(f'bench.{axis}' for axis in AXES)}")


def _cases(workshop: Workshop, variant: RunConfig, bench: Plain, say: Say) -> dict[tuple[str, int, str], Case]:
    """(axis, point, row) → its case, over the same weights."""
    cases: dict[tuple[str, int, str], Case] = {}
    name = bench["variant"]
    for axis, point, given in _points(workshop, bench):
        say(f"building: {axis} {point} …")
        given["compiled"] = bench["compiled"]
        cases[axis, point, BASELINE] = workshop.baseline(**given)
        cases[axis, point, name] = workshop.variant(variant, **given)
        for which in (BASELINE, name):
            cases[axis, point, which].step()
    return cases


def _points(workshop: Workshop, bench: Plain) -> list[tuple[str, int, dict[str, Any]]]:
    """(axis, point, what to make it with)."""
    shape, model = workshop.shape, workshop.model
    depth = len(layer_paths(model))
    if deeper := [layers for layers in bench["layers"] if layers > depth]:
        raise ConfigError(f"bench.layers holds {deeper[0]}, and the model has {depth}: give at most as many")
    lengths: list[Shape] = [] if takes_images(model) else [(shape[0], tokens) for tokens in bench["lengths"]]
    if lengths:
        shapes_for(model.cpu(), [list(each) for each in lengths], "bench.lengths")
        model.to(workshop.device)
    return [
        *(("lengths", each[1], {"shape": each}) for each in lengths),
        *(("rows", rows, {"shape": (rows, *shape[1:])}) for rows in bench["rows"]),
        *(("layers", layers, {"layers": layers}) for layers in bench["layers"]),
    ]


def _peak(case: Case, workshop: Workshop) -> int:
    return sum(storages(case.kept()).values()) + peak_bytes(case.step, workshop.device)


def _row(seconds: Mapping[str, list[float]], peaks: Mapping[str, int], samples: int) -> Plain:
    made = {name: figures(own, seconds[BASELINE], samples) for name, own in seconds.items()}
    return {name: row | ({"peak": peaks[name]} if name in peaks else {}) for name, row in made.items()}


def _of_processes(config: BenchConfig, plain: RunConfig, variant: RunConfig, processes: int) -> Plain:
    try:
        seconds = seconds_of_processes(config, plain, variant, processes)
    except Exception as error:  # of a process that ended; the other figures stay
        return {"error": f"{type(error).__name__}: … {' '.join(str(error).split())[-500:]}"}  # the words are at its end
    lists = dict(zip((BASELINE, config.bench["variant"]), seconds, strict=True))
    return _row(lists, {}, processes * config.bench["shape"][0])
