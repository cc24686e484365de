"""Check the configured shapes, and make random inputs of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qat_lightning.config.schema import ConfigError

Shape = tuple[int, ...]
"""(rows, tokens) of texts, (rows,) of images."""


def check_counts(bench: Mapping[str, Any], least: Mapping[str, int]) -> None:
    """Raise ConfigError where one of these keys is not a whole number or is below its minimum."""
    for name, smallest in least.items():
        if type(bench[name]) is not int or bench[name] < smallest:
            raise ConfigError(f"bench.{name}={bench[name]!r} must be a whole number, {smallest} or more")


def check_shapes(given: Any, key: str = "bench.shapes") -> None:
    """Raise ConfigError where `key` is not a list of [rows] or [rows, tokens]."""
    if not isinstance(given, list) or not given:
        raise ConfigError(f"{key}={given!r} must be a list of [rows, tokens]: {key}=[[1,128]]")
    for shape in given:
        numbers = shape if isinstance(shape, list) else []
        if len(numbers) not in (1, 2) or any(type(number) is not int or number < 1 for number in numbers):
            raise ConfigError(f"{key} holds {shape!r}: set [rows, tokens], or [rows] for images, each 1 or more")


def shapes_for(model: nn.Module, given: list[list[int]], key: str = "bench.shapes") -> list[Shape]:
    """Return each shape once; for images, whose size is that of the model, only the rows.

    Raises:
        ConfigError: a text shape without tokens, or with more tokens than the model can read.
    """
    if takes_images(model):
        return list(dict.fromkeys((shape[0],) for shape in given))
    if short := [shape for shape in given if len(shape) == 1]:
        raise ConfigError(f"{key} holds {short[0]}, but a text model needs [rows, tokens]: [[{short[0][0]},128]]")
    shapes: list[Shape] = list(dict.fromkeys((rows, tokens) for rows, tokens in given))
    _check_length(model, max(shapes, key=lambda shape: shape[1]), key)
    return shapes


def label(shape: Shape) -> str:
    """Return 8×128, or 8 for images."""
    return "×".join(map(str, shape))


def takes_images(model: nn.Module) -> bool:
    """Return whether the model's input is an image."""
    return model.main_input_name == "pixel_values"


def random_batch(model: nn.Module, shape: Shape, seed: int = 0) -> dict[str, Tensor]:
    """Return rows of random tokens without padding, or of normally distributed pixels."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(seed)
    if takes_images(model):
        size = (config.num_channels, config.image_size, config.image_size)
        return {"pixel_values": torch.randn(shape[0], *size, generator=generator)}
    lowest = (config.pad_token_id or 0) + 1
    tokens = torch.randint(lowest, config.vocab_size, shape, generator=generator)
    return {"input_ids": tokens, "attention_mask": torch.ones(shape, dtype=torch.long)}


def _check_length(model: nn.Module, longest: Shape, key: str) -> None:
    """Run one row, because families count positions differently (RoBERTa's begin after that of its padding)."""
    try:
        with torch.inference_mode():
            model(**random_batch(model, (1, longest[1])))
    except (IndexError, RuntimeError) as error:
        positions = getattr(model.config, "max_position_embeddings", "fewer")
        raise ConfigError(
            f"{key} holds {label(longest)}, too long for this {model.config.model_type} model"  # type: ignore[union-attr]
            f" (max_position_embeddings={positions}): set shorter ones"
        ) from error
