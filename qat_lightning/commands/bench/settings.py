"""Check the settings of a benchmark, and make random inputs of its shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from qat_lightning.config.schema import ConfigError
from qat_lightning.models.module_paths import layer_config

STRICT = ConfigDict(strict=True, extra="ignore")
Shape = tuple[int, ...]
"""(rows, tokens) of texts, (rows,) of images."""
Sizes = Annotated[list[PositiveInt], Field(min_length=1, max_length=2)]
Settings = TypeVar("Settings")


@dataclass(config=STRICT, kw_only=True)
class InferenceSettings:
    """The settings of `conf/bench/inference.yaml`."""

    shapes: Annotated[list[Sizes], Field(min_length=1)]
    repeats: PositiveInt
    warmup: NonNegativeInt
    loads: PositiveInt


@dataclass(config=STRICT, kw_only=True)
class TrainingSettings:
    """The settings of `conf/bench/training.yaml`."""

    shape: Sizes
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["32-true", "bf16-mixed"]
    compiled: Literal[False, True, "both"]
    repeats: PositiveInt
    warmup: NonNegativeInt
    untimed: NonNegativeInt
    clock: Literal["wall", "processor"]
    evaluation: bool
    memory: bool
    only: list[str] | None
    common: list[str]
    variants: dict[str, list[str]]


@dataclass(config=STRICT, kw_only=True)
class ScalingSettings(TrainingSettings):
    """The settings of `conf/bench/scaling.yaml`."""

    variant: str
    lengths: list[PositiveInt]
    rows: list[PositiveInt]
    layers: list[PositiveInt]
    processes: list[PositiveInt]


def read_settings(kind: type[Settings], bench: Mapping[str, Any]) -> Settings:
    """Return the settings of a benchmark; ConfigError for one of another type or out of its range."""
    try:
        return kind(**bench)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"bench.{key}={first['input']!r}: {first['msg']}") from error


def shapes_for(model: nn.Module, given: list[list[int]], key: str = "bench.shapes") -> list[Shape]:
    """Return each shape once; for images, whose size is that of the model, only the rows. ConfigError for a wrong text shape."""
    if takes_images(model):
        return list(dict.fromkeys((shape[0],) for shape in given))
    if short := [shape for shape in given if len(shape) == 1]:
        raise ConfigError(f"{key} holds {short[0]}, but a text model needs [rows, tokens]: [[{short[0][0]},128]]")
    longest = max(given, key=lambda shape: shape[1])
    try:  # one row, because families count positions differently (RoBERTa's begin after that of its padding)
        with torch.inference_mode():
            model(**random_batch(model, (1, longest[1])))
    except (IndexError, RuntimeError) as error:
        raise ConfigError(f"{key} holds {label(longest)}, too long for this model: set shorter ones") from error
    return list(dict.fromkeys((rows, tokens) for rows, tokens in given))


def label(shape: Shape | list[int]) -> str:
    """Return 8×128, or 8 for images."""
    return "×".join(map(str, shape))


def takes_images(model: nn.Module) -> bool:
    """Return whether the model's input is an image."""
    return model.main_input_name == "pixel_values"


def random_batch(model: nn.Module, shape: Shape, seed: int = 0) -> dict[str, Tensor]:
    """Return rows of random tokens without padding, or of normally distributed pixels."""
    config = layer_config(model)
    generator = torch.Generator().manual_seed(seed)
    if takes_images(model):
        size = (config.num_channels, config.image_size, config.image_size)
        return {"pixel_values": torch.randn(shape[0], *size, generator=generator)}
    lowest = (config.pad_token_id or 0) + 1
    tokens = torch.randint(lowest, config.vocab_size, shape, generator=generator)
    return {"input_ids": tokens, "attention_mask": torch.ones(shape, dtype=torch.long)}
