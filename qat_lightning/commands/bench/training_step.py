"""What a training step costs: each method beside a plain fine-tuning step of the same model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from qat_lightning.commands.bench.cases import Case, Workshop
from qat_lightning.commands.bench.environment import torch_threads
from qat_lightning.commands.bench.memory import peak_bytes, saved_bytes, storages
from qat_lightning.commands.bench.shapes import check_counts, check_shapes, label, shapes_for
from qat_lightning.commands.bench.timing import seconds_side_by_side, spread
from qat_lightning.commands.bench.training_table import COMPILED, beside
from qat_lightning.commands.bench.variants import compose_plain, compose_variants
from qat_lightning.compat import recompile_limit
from qat_lightning.config.instantiate import suggest
from qat_lightning.config.schema import BenchConfig, ConfigError, Plain, RunConfig
from qat_lightning.distillation.step import GRAPHS

Say = Callable[[str], None]
"""Takes a line for the terminal, in place of the one before."""

BASELINE = "transformers"
"""The row that ratios are against."""

CHOICES: Mapping[str, tuple[Any, ...]] = {
    "device": ("auto", "cpu", "cuda"),
    "precision": ("32-true", "bf16-mixed"),
    "compiled": (False, True, "both"),
    "clock": ("wall", "processor"),
    "evaluation": (False, True),
    "memory": (False, True),
}


def measure_training(config: BenchConfig, say: Say) -> Plain:
    """Seconds, samples a second and bytes of a step of each variant, all in this process and on the same batch.

    Returns what becomes JSON: {"model", "baseline", "shape", …, "variants": {name: {"step": {"seconds": {"median", "low",
    "high", "least"}, "ratio", "ratio_of_least", "samples_per_second"}, "memory": {"peak", "saved", …}, "evaluation":
    {…}} or {"error": words}}}. Ratios are of the variant to the baseline.

    Raises:
        ConfigError: numbers or names that cannot be timed.
    """
    bench, threads = config.bench, config.threads
    check_training(bench)
    plain, variants = compose_plain(config), compose_variants(config)
    with torch_threads(threads), compiled_or_told():
        workshop = opened(config, plain)
        cases: dict[str, Case] = {}
        rows: dict[str, Plain] = {}
        for compiled in (False, True):
            if bench["compiled"] in (compiled, "both"):
                made, errors = _made(workshop, variants, compiled, say)
                cases, rows = cases | made, rows | {name: {} for name in made} | errors
        memory = {name: _bytes(case, workshop.device) for name, case in cases.items()} if bench["memory"] else {}
        seconds = timed(bench, cases, say)
    rows |= {name: _row(name, seconds, memory, workshop.shape[0]) for name in cases}
    return about(config, workshop) | {"baseline": BASELINE, "variants": rows}


def check_training(bench: Plain) -> None:
    """Raises ConfigError for a number or a choice that cannot be timed."""
    check_counts(bench, {"repeats": 1, "warmup": 0, "untimed": 0})
    check_shapes([bench["shape"]], "bench.shape")
    for name, choices in CHOICES.items():
        if bench[name] not in choices:
            raise ConfigError(f"bench.{name}={bench[name]!r}: {suggest(str(bench[name]), map(str, choices))}")
    if bench["device"] == "cuda" and not torch.cuda.is_available():
        raise ConfigError("bench.device=cuda, and torch finds none: give bench.device=cpu")


def opened(config: BenchConfig, plain: RunConfig) -> Workshop:
    """The workshop of the configured model, on the device at hand."""
    bench = config.bench
    found = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(found if bench["device"] == "auto" else bench["device"])
    workshop = Workshop(plain, tuple(bench["shape"]), device, bench["precision"])
    (workshop.shape,) = shapes_for(workshop.model.cpu(), [bench["shape"]], "bench.shape")
    workshop.model.to(device)
    return workshop


def about(config: BenchConfig, workshop: Workshop) -> Plain:
    """What the figures depend on."""
    bench, device = config.bench, workshop.device
    return {
        "model": {
            "family": workshop.model.config.model_type,
            "parameters": sum(parameter.numel() for parameter in workshop.model.parameters()),
        },
        "threads": config.threads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "shape": label(workshop.shape),
        **{name: bench[name] for name in ("precision", "compiled", "clock", "repeats", "warmup", "untimed")},
    }


def timed(bench: Plain, cases: Mapping[Any, Case], say: Say) -> dict[tuple[str, Hashable], list[float]]:
    """("step" or "evaluation", case) → seconds of each round."""
    calls: dict[tuple[str, Hashable], Callable[[], Any]] = {("step", name): case.step for name, case in cases.items()}
    if bench["evaluation"]:
        calls |= {("evaluation", name): case.evaluate for name, case in cases.items()}
    around = {("evaluation", name): case.evaluating for name, case in cases.items()}
    return seconds_side_by_side(
        calls,
        bench["repeats"],
        bench["warmup"],
        bench["untimed"],
        lambda line: say(f"timing: {line} …"),
        bench["clock"],
        around,
    )


def figures(own: Sequence[float], baseline: Sequence[float] | None, samples: int) -> Plain:
    """Seconds of one row, and how many times the baseline's they are (None without one)."""
    median = spread(own).median
    return {
        "seconds": asdict(spread(own)) | {"least": min(own)},
        "ratio": baseline and median / spread(baseline).median,
        "ratio_of_least": baseline and min(own) / min(baseline),
        "samples_per_second": samples / median,
    }


def compiled_or_told() -> Any:
    """A context in which what cannot be compiled raises, in place of running eagerly in silence."""
    return recompile_limit(GRAPHS, fail_on_recompile_limit_hit=True)


def _made(
    workshop: Workshop, variants: Mapping[str, RunConfig], compiled: bool, say: Say
) -> tuple[dict[str, Case], dict[str, Plain]]:
    """The cases, each run once; and a row that says why for each variant that cannot be built, compiled or run here."""
    last = COMPILED if compiled else ""
    makers = {BASELINE: partial(workshop.baseline, compiled=compiled)} | {
        name: partial(workshop.variant, variant, compiled=compiled) for name, variant in variants.items()
    }
    cases, errors = {}, {}
    for name, make in makers.items():
        say(f"building: {name}{last} …")
        try:
            case = make()
            for _ in range(1 + compiled):  # transformers' model is compiled anew for its second step
                case.step()
            with case.evaluating():
                case.evaluate()
            cases[name + last] = case
        except Exception as error:  # whatever the compiler, or a family without what is read, raises: the others go on
            errors[name + last] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
    return cases, errors


def _bytes(case: Case, device: torch.device) -> Plain:
    """peak: all that torch holds at a step's highest point; kept: of it, what lives from step to step; saved: of it, what the
    forward pass leaves for the backward pass."""
    kept = sum(storages(case.kept()).values())
    return {
        "peak": kept + peak_bytes(case.step, device),
        "kept": kept,
        "saved": saved_bytes(case.forward, device),
    }


def _row(
    name: str, seconds: Mapping[tuple[str, Hashable], list[float]], memory: Mapping[str, Plain], rows: int
) -> Plain:
    baseline = beside(name, BASELINE)
    made: Plain = {}
    for kind in ("step", "evaluation"):
        if (kind, name) in seconds:
            made[kind] = figures(seconds[kind, name], seconds.get((kind, baseline)), rows)
    return made | ({"memory": memory[name]} if name in memory else {})
