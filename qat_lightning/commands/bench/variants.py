"""Compose the configurations of the timed methods: each is a list of overrides of an ordinary run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hydra import compose
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

from qat_lightning.config.builders.models import described
from qat_lightning.config.instantiate import suggest
from qat_lightning.config.schema import BenchConfig, ConfigError, ModelConfig, Plain, RunConfig, resolve
from qat_lightning.config.validation import check

NO_METHOD = ("quantization=none", "teacher=none", "losses=task", "intervention=none", "intervention_schedule=none")
"""Overrides of plain fine-tuning."""

REFUSED = {
    "model": "all variants have the same model: set it for the command itself",
    "data": "all variants have the same inputs: set bench.shape for the command itself",
    "compile": "compilation is set for the command itself: bench.compiled",
    "trainer": "a step is timed without its Trainer: set bench.precision for the command itself",
    "teacher_cache": "the teacher's computation is timed: leave it out",
}
"""Groups that a variant cannot set → the reason and what to do instead."""


def compose_variants(config: BenchConfig) -> dict[str, RunConfig]:
    """Name → the checked configuration of a run; of those in `bench.only`, in the order of `bench.variants`.

    Hydra must be initialized, as it is under the command line.

    Raises:
        ConfigError: an unknown name; overrides that an ordinary run refuses; a variant with a model or data of its own.
    """
    bench = config.bench
    _check_names(bench)
    chosen = [name for name in bench["variants"] if bench["only"] is None or name in bench["only"]]
    return {name: compose_run(config, bench["variants"][name], f"bench.variants.{name}") for name in chosen}


def compose_plain(config: BenchConfig) -> RunConfig:
    """Compose the configuration of the baseline: the common overrides and plain fine-tuning."""
    return compose_run(config, NO_METHOD, "bench.common")


def compose_run(config: BenchConfig, overrides: Sequence[str], key: str) -> RunConfig:
    """Compose an ordinary run's configuration with this command's model (random weights) and quantization.

    Args:
        key: the key that errors name.
    """
    _check_overrides(overrides, key)
    data = "random_images" if _reads_images(config.model) else "random_text"
    no_intervention = [] if _chooses("intervention", overrides) else ["intervention=none", "intervention_schedule=none"]
    try:
        words = [f"data={data}", *no_intervention, *config.bench["common"], *overrides]
        made = resolve(compose("config", overrides=words))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error
    made.model = replace(config.model, pretrained=False)
    if not _chooses("quantization", overrides):
        made.quantization = config.quantization
    check(made)
    return made


def _check_names(bench: Plain) -> None:
    only, variants = bench["only"], bench["variants"]
    if not isinstance(variants, Mapping) or not (only is None or isinstance(only, list)):
        raise ConfigError(f"bench.variants must be a mapping and bench.only={only!r} a list of its names, or null")
    for name in only or ():
        if name not in variants:
            raise ConfigError(f"bench.only holds {name!r}: {suggest(str(name), variants)}")


def _check_overrides(overrides: Any, key: str) -> None:
    if not isinstance(overrides, list | tuple) or not all(isinstance(word, str) for word in overrides):
        raise ConfigError(f"{key}={overrides!r} must be a list of overrides: ['losses=task','teacher=none']")
    for word in overrides:
        group = word.lstrip("+~").partition("=")[0].partition(".")[0]
        if group in REFUSED:
            raise ConfigError(f"{key} holds {word!r}, but {REFUSED[group]}")
        if group == "quantization" and not _chooses("quantization", overrides):
            raise ConfigError(f"{key} holds {word!r} without a quantization=… of its own: add one before it")


def _chooses(group: str, overrides: Sequence[str]) -> bool:
    return any(word.startswith(f"{group}=") for word in overrides)


def _reads_images(model: ModelConfig) -> bool:
    return type(described(model, num_labels=2)) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
