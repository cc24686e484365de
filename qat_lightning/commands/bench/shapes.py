"""The shapes that are timed, and random inputs of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qat_lightning.config.schema import ConfigError

Shape = tuple[int, ...]
"""(rows, tokens) of texts, (rows,) of images."""


def check_counts(bench: Mapping[str, Any], least: Mapping[str, int]) -> None:
    """Raises ConfigError where one of these keys of the bench is no whole number, or less than its least."""
    for name, smallest in least.items():
        if type(bench[name]) is not int or bench[name] < smallest:
            raise ConfigError(f"bench.{name}={bench[name]!r} must be a whole number, {smallest} or more")


def check_shapes(given: Any, key: str = "bench.shapes") -> None:
    """Raises ConfigError where `key` is no list of rows, or of rows and tokens."""
    if not isinstance(given, list) or not given:
        raise ConfigError(f"{key}={given!r} must be a list of [rows, tokens]: {key}=[[1,128]]")
    for shape in given:
        numbers = shape if isinstance(shape, list) else []
        if len(numbers) not in (1, 2) or any(type(number) is not int or number < 1 for number in numbers):
            raise ConfigError(f"{key} holds {shape!r}: give [rows, tokens], or of images [rows], each 1 or more")


def shapes_for(model: nn.Module, given: list[list[int]], key: str = "bench.shapes") -> list[Shape]:
    """Those given, each once; of images, whose size is the model's, the rows alone.

    Raises:
        ConfigError: a text without tokens, or with more than the model can read.
    """
    if takes_images(model):
        return list(dict.fromkeys((shape[0],) for shape in given))
    if short := [shape for shape in given if len(shape) == 1]:
        raise ConfigError(f"{key} holds {short[0]}, and a text model needs [rows, tokens]: [[{short[0][0]},128]]")
    shapes: list[Shape] = list(dict.fromkeys((rows, tokens) for rows, tokens in given))
    _check_length(model, max(shapes, key=lambda shape: shape[1]), key)
    return shapes


def label(shape: Shape) -> str:
    """8×128; of images 8."""
    return "×".join(map(str, shape))


def takes_images(model: nn.Module) -> bool:
    return model.main_input_name == "pixel_values"


def random_batch(model: nn.Module, shape: Shape, seed: int = 0) -> dict[str, Tensor]:
    """Full rows: tokens without padding, normal pixels."""
    config: Any = model.config
    draw = torch.Generator().manual_seed(seed)
    if takes_images(model):
        size = (config.num_channels, config.image_size, config.image_size)
        return {"pixel_values": torch.randn(shape[0], *size, generator=draw)}
    lowest = (config.pad_token_id or 0) + 1
    tokens = torch.randint(lowest, config.vocab_size, shape, generator=draw)
    return {"input_ids": tokens, "attention_mask": torch.ones(shape, dtype=torch.long)}


def _check_length(model: nn.Module, longest: Shape, key: str) -> None:
    """One row of it is run: families count positions in ways of their own (RoBERTa's begin behind its padding's)."""
    try:
        with torch.inference_mode():
            model(**random_batch(model, (1, longest[1])))
    except (IndexError, RuntimeError) as error:
        positions = getattr(model.config, "max_position_embeddings", "fewer")
        raise ConfigError(
            f"{key} holds {label(longest)}, too long for this {model.config.model_type} model"  # type: ignore[union-attr]
            f" (max_position_embeddings={positions}): give shorter ones"
        ) from error
