"""Read from the model's files how its data is encoded: numbers of classes, scale of pixels, pooling of sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from qat_lightning.config.builders.pretrained import optional_file, read_architecture
from qat_lightning.config.schema import ConfigError, ModelConfig
from qat_lightning.data.base import TaskData
from qat_lightning.data.image_classification import ImageClassificationData
from qat_lightning.data.labels import LabelColumn
from qat_lightning.data.sentence_embedding import SentenceEmbeddingData
from qat_lightning.io.documents import read_json
from qat_lightning.models.sentence_pooling import MODULES, POOLING, SentencePooling, read_pooling
from qat_lightning.training.compatibility import names_of

PROCESSOR, STATISTICS = "processor_config.json", "preprocessor_config.json"
"""Files of an image processor; the first is read first, as transformers does, and holds it as `image_processor`."""


def follow_model(model: ModelConfig, data: TaskData) -> None:
    """Let the data number its classes, and scale its pixels, as the files of `model.path` say.

    Raises ConfigError for a model that is not there, whose names of classes contradict each other, or a damaged file.
    """
    path = model.path
    if not path or not (model.pretrained or (Path(path) / "config.json").is_file()):
        return
    if isinstance(getattr(data, "labels", None), LabelColumn) and not data.regression:
        architecture = read_architecture(model, num_labels=data.num_labels)
        _check_names(architecture, path)
        data.model_names = names_of(architecture)
    if isinstance(data, ImageClassificationData) and (statistics := _statistics(model, data.channels)):
        data.follow_statistics(*statistics)
    if isinstance(data, SentenceEmbeddingData) and (pooling := _pooling(model)) is not None:
        data.pooling = data.pooling or pooling.pooling
        data.normalize = pooling.normalize if data.normalize is None else data.normalize


def _pooling(model: ModelConfig) -> SentencePooling | None:
    """Read the pooling that sentence-transformers keeps beside the model; None without it."""
    files = [optional_file(str(model.path), name, model.revision) for name in (POOLING, MODULES)]
    if files[0] is None:
        return None
    try:
        return read_pooling(*([] if file is None else read_json(file) for file in files))
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{POOLING} of model.path={model.path!r} cannot be used ({' '.join(str(error).split())}): set data.pooling"
        ) from error


def _check_names(architecture: PretrainedConfig, path: str) -> None:
    """`id2label` and `label2id` give a class one number."""
    names = {int(number): name for number, name in (architecture.id2label or {}).items()}
    for name, number in (architecture.label2id or {}).items():
        if name in names.values() and names.get(int(number)) != name:
            raise ConfigError(
                f"model.path={path!r}: in its config.json label2id gives {name!r} the number {number}, and id2label gives that"
                f" number to {names.get(int(number))!r}: correct the wrong one"
            )


def _statistics(model: ModelConfig, channels: int) -> tuple[list[float], list[float]] | None:
    """Mean and deviation of pixels in [0, 1], as the model's image processor has them; None without such a file."""
    for name in (PROCESSOR, STATISTICS):
        place = optional_file(str(model.path), name, model.revision)
        if place is None:
            continue
        try:
            given = read_json(place)
            given = given.get("image_processor") if name == PROCESSOR else given
            if given is not None:
                return _scaled({key: value for key, value in given.items() if value is not None}, channels)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{name} of model.path={model.path!r} cannot be used ({' '.join(str(error).split())}): repair it"
            ) from error
    return None


def _scaled(given: Mapping[str, Any], channels: int) -> tuple[list[float], list[float]] | None:
    """Its mean and deviation are of pixels times `rescale_factor`, ours of pixels / 255."""
    if not given.get("do_normalize", "image_mean" in given):
        mean, std = [0.0], [1.0]
    elif not {"image_mean", "image_std"} <= given.keys():
        return None
    else:
        mean, std = (_numbers(given[name], name) for name in ("image_mean", "image_std"))
    factor = float(given.get("rescale_factor", 1 / 255)) if given.get("do_rescale", True) else 1.0
    if not (math.isfinite(factor) and factor > 0 and min(std) > 0):
        raise ValueError(f"rescale_factor={factor} and image_std={std} must be above 0")
    if max(mean) > 255 * factor:
        raise ValueError(
            f"image_mean={mean} is above {255 * factor:g}, the largest pixel after rescale_factor={factor:g}: do_rescale=false"
            " would leave pixels in 0…255"
        )
    if {len(mean), len(std)} - {1, channels}:
        return None  # of other channels: the model refuses such images
    return [value / (255 * factor) for value in mean], [value / (255 * factor) for value in std]


def _numbers(given: Any, name: str) -> list[float]:
    numbers = [float(value) for value in (given if isinstance(given, list) else [given])]
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name}={given!r} must be a list of numbers")
    return numbers
