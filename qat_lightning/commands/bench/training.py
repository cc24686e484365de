"""Measure a training step of each method against a plain fine-tuning step of the same model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from hydra import compose
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

from qat_lightning.commands.bench.measures import (
    Report,
    peak_bytes,
    saved_bytes,
    spread,
    storage_bytes,
    time_interleaved,
    torch_threads,
)
from qat_lightning.commands.bench.settings import TrainingSettings, label, read_settings, shapes_for
from qat_lightning.commands.bench.steps import Case, CaseBuilder
from qat_lightning.commands.bench.tables import COMPILED, baseline_of
from qat_lightning.compat import recompile_limit
from qat_lightning.config.builders.models import described
from qat_lightning.config.instantiate import suggest
from qat_lightning.config.schema import BenchConfig, ConfigError, Plain, RunConfig, resolve
from qat_lightning.config.validation import check
from qat_lightning.distillation.step import GRAPHS

BASELINE = "transformers"
"""The row that ratios refer to."""
NO_METHOD = ("quantization=none", "teacher=none", "losses=task", "intervention=none", "intervention_schedule=none")
"""Overrides of plain fine-tuning."""
COMMON = {"model": "model", "data": "bench.shape", "compile": "bench.compiled", "trainer": "bench.precision",
          "teacher_cache": "bench.memory"}  # fmt: skip
"""Groups that no variant has of its own → the setting of the command in their place."""


def measure_training(config: BenchConfig, report: Report) -> Plain:
    """Measure the seconds, samples per second and bytes of each variant's step in this process, on the same batch.

    Returns: {"model", "baseline", "shape", …, "variants": {name: {"step": {"seconds": {"median", "low", "high", "least"},
    "ratio", "ratio_of_least", "samples_per_second"}, "memory": {"peak", "saved", …}, "evaluation": {…}} or {"error":
    message}}}. Ratios are variant / baseline.
    """
    settings = read_settings(TrainingSettings, config.bench)
    plain, variants = compose_run(config, NO_METHOD), compose_variants(config)
    with torch_threads(config.threads), strict_compilation():
        builder = make_builder(settings, plain)
        cases: dict[str, Case] = {}
        rows: dict[str, Plain] = {}
        for compiled in (False, True):
            if settings.compiled in (compiled, "both"):
                _build(builder, variants, compiled, report, cases, rows)
        memory: dict[str, Plain] = {}
        for name, case in cases.items() if settings.memory else ():
            kept, peak = storage_bytes(case.persistent()), peak_bytes(case.step, builder.device)
            memory[name] = {"peak": kept + peak, "kept": kept, "saved": saved_bytes(case.forward, builder.device)}
        seconds = time_cases(settings, cases, report)
    for name in cases:
        for kind in ("step", "evaluation") if settings.evaluation else ("step",):
            baseline = seconds.get((kind, baseline_of(name, BASELINE)))
            rows[name][kind] = figures(seconds[kind, name], baseline, builder.shape[0])
        if name in memory:
            rows[name]["memory"] = memory[name]
    return conditions(config, builder) | {"baseline": BASELINE, "variants": rows}


def compose_variants(config: BenchConfig) -> dict[str, RunConfig]:
    """Name → the checked configuration of a run; of those in `bench.only`, in the order of `bench.variants`.

    Hydra must be initialized, as it is under the command line.
    """
    only, variants = config.bench["only"], config.bench["variants"]
    for name in only or ():
        if name not in variants:
            raise ConfigError(f"bench.only holds {name!r}: {suggest(name, variants)}")
    chosen = variants if only is None else [name for name in variants if name in only]
    return {name: compose_run(config, variants[name], f"bench.variants.{name}") for name in chosen}


def compose_run(config: BenchConfig, overrides: Sequence[str], key: str = "bench.common") -> RunConfig:
    """Compose an ordinary run's configuration with this command's model (random weights); errors name `key`."""
    chosen = {word.partition("=")[0] for word in overrides}
    for word in overrides:
        group = word.lstrip("+~").partition("=")[0].partition(".")[0]
        if group in COMMON:
            raise ConfigError(f"{key} holds {word!r}, but all variants have the same: set {COMMON[group]}=…")
        if group == "quantization" and group not in chosen:
            raise ConfigError(f"{key} holds {word!r} without a quantization=… of its own: add one before it")
    images = type(described(config.model, num_labels=2)) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    words = [f"data={'random_images' if images else 'random_text'}"]
    words += [] if "intervention" in chosen else ["intervention=none", "intervention_schedule=none"]
    try:
        made = resolve(compose("config", overrides=[*words, *config.bench["common"], *overrides]))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error
    made.model = replace(config.model, pretrained=False)
    if "quantization" not in chosen:
        made.quantization = config.quantization
    check(made)
    return made


def make_builder(settings: TrainingSettings, plain: RunConfig) -> CaseBuilder:
    """Return a builder of the configured model, on the configured device."""
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise ConfigError("bench.device=cuda, but torch finds no CUDA device: set bench.device=cpu")
    device = torch.device("cuda" if available and settings.device != "cpu" else "cpu")
    builder = CaseBuilder(plain, tuple(settings.shape), device, settings.precision)
    (builder.shape,) = shapes_for(builder.model.cpu(), [settings.shape], "bench.shape")
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


def time_cases(
    settings: TrainingSettings, cases: Mapping[Any, Case], report: Report
) -> dict[tuple[str, Hashable], list[float]]:
    """Return ("step" or "evaluation", case) → seconds of each round."""
    calls: dict[tuple[str, Hashable], Callable[[], Any]] = {("step", name): case.step for name, case in cases.items()}
    if settings.evaluation:
        calls |= {("evaluation", name): case.evaluate for name, case in cases.items()}
    contexts = {("evaluation", name): case.evaluation for name, case in cases.items()}
    counts = (settings.repeats, settings.warmup, settings.untimed)
    return time_interleaved(calls, *counts, report, settings.clock, contexts)


def figures(own: Sequence[float], baseline: Sequence[float] | None, samples: int) -> Plain:
    """Return the seconds of a row and their ratio to the baseline's (None without one)."""
    seconds = spread(own)
    return {
        "seconds": seconds | {"least": min(own)},
        "ratio": baseline and seconds["median"] / spread(baseline)["median"],
        "ratio_of_least": baseline and min(own) / min(baseline),
        "samples_per_second": samples / seconds["median"],
    }


def strict_compilation() -> Any:
    """Return a context in which a function that is compiled too often raises, instead of running eagerly."""
    return recompile_limit(GRAPHS, fail_on_recompile_limit_hit=True)


def _build(
    builder: CaseBuilder, variants: Mapping[str, RunConfig], compiled: bool, report: Report, cases: dict[str, Case],
    rows: dict[str, Plain],
) -> None:  # fmt: skip
    """Add the cases, each run once, and an error row for each variant that cannot be built, compiled or run."""
    makers = {BASELINE: builder.baseline} | {name: partial(builder.variant, run) for name, run in variants.items()}
    for name, make in makers.items():
        name += COMPILED if compiled else ""
        report(f"building: {name} …")
        rows[name] = {}
        try:
            case = make(compiled=compiled)
            for _ in range(1 + compiled):  # transformers' model is compiled again in its second step
                case.step()
            with case.evaluation():
                case.evaluate()
            cases[name] = case
        except Exception as error:  # compilers and models raise any class; the other variants continue
            rows[name] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
