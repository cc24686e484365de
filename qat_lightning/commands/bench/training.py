"""Measure a training step of each method against a plain fine-tuning step of the same model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from qat_lightning.commands.bench.memory import peak_bytes, saved_bytes, storage_bytes
from qat_lightning.commands.bench.shapes import check_counts, check_shapes, label, shapes_for
from qat_lightning.commands.bench.steps import Case, CaseBuilder
from qat_lightning.commands.bench.tables import COMPILED, baseline_of
from qat_lightning.commands.bench.timing import Report, spread, time_interleaved, torch_threads
from qat_lightning.commands.bench.variants import compose_plain, compose_variants
from qat_lightning.compat import recompile_limit
from qat_lightning.config.instantiate import suggest
from qat_lightning.config.schema import BenchConfig, ConfigError, Plain, RunConfig
from qat_lightning.distillation.step import GRAPHS

BASELINE = "transformers"
"""The row that ratios refer to."""
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "device": ("auto", "cpu", "cuda"),
    "precision": ("32-true", "bf16-mixed"),
    "compiled": (False, True, "both"),
    "clock": ("wall", "processor"),
    "evaluation": (False, True),
    "memory": (False, True),
}


def measure_training(config: BenchConfig, report: Report) -> Plain:
    """Measure the seconds, samples per second and bytes of each variant's step in this process, on the same batch.

    Returns: {"model", "baseline", "shape", …, "variants": {name: {"step": {"seconds": {"median", "low", "high", "least"},
    "ratio", "ratio_of_least", "samples_per_second"}, "memory": {"peak", "saved", …}, "evaluation": {…}} or {"error":
    message}}}. Ratios are variant / baseline.

    Raises:
        ConfigError: a count, a shape, a choice or a name that does not exist.
    """
    bench = config.bench
    check_training(bench)
    plain, variants = compose_plain(config), compose_variants(config)
    with torch_threads(config.threads), strict_compilation():
        builder = make_builder(config, plain)
        cases: dict[str, Case] = {}
        rows: dict[str, Plain] = {}
        for compiled in (False, True):
            if bench["compiled"] in (compiled, "both"):
                built, errors = _build(builder, variants, compiled, report)
                cases, rows = cases | built, rows | {name: {} for name in built} | errors
        memory = {name: _memory(case, builder.device) for name, case in cases.items()} if bench["memory"] else {}
        seconds = time_cases(bench, cases, report)
    rows |= {name: _row(name, seconds, memory, builder.shape[0]) for name in cases}
    return conditions(config, builder) | {"baseline": BASELINE, "variants": rows}


def check_training(bench: Plain) -> None:
    """Raise ConfigError for a count, a shape or a choice that does not exist."""
    check_counts(bench, {"repeats": 1, "warmup": 0, "untimed": 0})
    check_shapes([bench["shape"]], "bench.shape")
    for name, choices in CHOICES.items():
        if bench[name] not in choices:
            raise ConfigError(f"bench.{name}={bench[name]!r}: {suggest(str(bench[name]), map(str, choices))}")
    if bench["device"] == "cuda" and not torch.cuda.is_available():
        raise ConfigError("bench.device=cuda, but torch finds no CUDA device: set bench.device=cpu")


def make_builder(config: BenchConfig, plain: RunConfig) -> CaseBuilder:
    """Return a builder of the configured model, on the configured device."""
    bench, available = config.bench, "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(available if bench["device"] == "auto" else bench["device"])
    builder = CaseBuilder(plain, tuple(bench["shape"]), device, bench["precision"])
    (builder.shape,) = shapes_for(builder.model.cpu(), [bench["shape"]], "bench.shape")
    builder.model.to(device)
    return builder


def conditions(config: BenchConfig, builder: CaseBuilder) -> Plain:
    """Return what the figures depend on."""
    model, device = builder.model, builder.device
    parameters = sum(parameter.numel() for parameter in model.parameters())
    settings = ("precision", "compiled", "clock", "repeats", "warmup", "untimed")
    return {
        "model": {"family": model.config.model_type, "parameters": parameters},
        "threads": config.threads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "shape": label(builder.shape),
        **{name: config.bench[name] for name in settings},
    }


def time_cases(bench: Plain, cases: Mapping[Any, Case], report: Report) -> dict[tuple[str, Hashable], list[float]]:
    """Return ("step" or "evaluation", case) → seconds of each round."""
    calls: dict[tuple[str, Hashable], Callable[[], Any]] = {("step", name): case.step for name, case in cases.items()}
    if bench["evaluation"]:
        calls |= {("evaluation", name): case.evaluate for name, case in cases.items()}
    contexts = {("evaluation", name): case.evaluation for name, case in cases.items()}
    counts = (bench["repeats"], bench["warmup"], bench["untimed"])
    return time_interleaved(calls, *counts, lambda line: report(f"timing: {line} …"), bench["clock"], contexts)


def figures(own: Sequence[float], baseline: Sequence[float] | None, samples: int) -> Plain:
    """Return the seconds of a row and their ratio to the baseline's (None without one)."""
    median = spread(own).median
    return {
        "seconds": asdict(spread(own)) | {"least": min(own)},
        "ratio": baseline and median / spread(baseline).median,
        "ratio_of_least": baseline and min(own) / min(baseline),
        "samples_per_second": samples / median,
    }


def strict_compilation() -> Any:
    """Return a context in which a function that is compiled too often raises, instead of running eagerly."""
    return recompile_limit(GRAPHS, fail_on_recompile_limit_hit=True)


def _build(
    builder: CaseBuilder, variants: Mapping[str, RunConfig], compiled: bool, report: Report
) -> tuple[dict[str, Case], dict[str, Plain]]:
    """Return the cases, each run once, and an error row for each variant that cannot be built, compiled or run."""
    suffix = COMPILED if compiled else ""
    makers = {BASELINE: partial(builder.baseline, compiled=compiled)} | {
        name: partial(builder.variant, variant, compiled=compiled) for name, variant in variants.items()
    }
    cases, errors = {}, {}
    for name, make in makers.items():
        report(f"building: {name}{suffix} …")
        try:
            case = make()
            for _ in range(1 + compiled):  # transformers' model is compiled again in its second step
                case.step()
            with case.evaluation():
                case.evaluate()
            cases[name + suffix] = case
        except Exception as error:  # compilers and models raise any class; the other variants continue
            errors[name + suffix] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
    return cases, errors


def _memory(case: Case, device: torch.device) -> Plain:
    """Return the bytes at a step's peak, those that live from step to step, and those saved for the backward pass."""
    kept = storage_bytes(case.persistent())
    return {"peak": kept + peak_bytes(case.step, device), "kept": kept, "saved": saved_bytes(case.forward, device)}


def _row(
    name: str, seconds: Mapping[tuple[str, Hashable], list[float]], memory: Mapping[str, Plain], samples: int
) -> Plain:
    baseline = baseline_of(name, BASELINE)
    row = {
        kind: figures(seconds[kind, name], seconds.get((kind, baseline)), samples)
        for kind in ("step", "evaluation")
        if (kind, name) in seconds
    }
    return row | ({"memory": memory[name]} if name in memory else {})
