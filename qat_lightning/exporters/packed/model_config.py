"""config.json: the model's configuration, fields of its class alone, and the block that says what is quantized."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from qat_lightning.exporters.packed.manifest import Plain
from qat_lightning.exporters.packed.quantization_config import Block, make_block, read_block
from qat_lightning.models.families import FAMILIES
from qat_lightning.models.packed_state import Packed
from qat_lightning.quantization.quantizers.base import Quantizer

BESIDES = ("model_type", "quantization_config")
"""Keys of config.json that are not fields of the configuration's class."""

COMPILED = {"compile_config", "continuous_batching_config"}
"""Fields of generation_config.json that choose what compiles or serves the model; they are neither written nor read."""


def model_class(model_type: object, architecture: object) -> Any:
    """Find the class of that name, base model or head, in that family of transformers, without an import by name.

    Raises ValueError for a family without a table, or another class.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto as auto

    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(f"the model family {model_type!r} has no table of parts; known: {', '.join(FAMILIES)}")
    found: list[Any] = []
    for mapping in (
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
        auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING,
        auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        auto.MODEL_MAPPING,
    ):
        known = mapping.get(CONFIG_MAPPING[model_type], ())
        found += known if isinstance(known, (tuple, list)) else [known]
    for candidate in found:
        if candidate.__name__ == architecture:
            return candidate
    names = ", ".join(sorted({candidate.__name__ for candidate in found}))
    raise ValueError(f"{architecture!r} is not a model of the family {model_type}; known: {names}")


def check_class(model: Any) -> None:
    """Raise ValueError for a model whose class is not the one that `model_class` finds by its name."""
    kind = type(model)
    if model_class(getattr(getattr(model, "config", None), "model_type", None), kind.__name__) is not kind:
        raise ValueError(f"{kind.__module__}.{kind.__name__} is not transformers' own class of that name")


def make_config(model: Any, packed: Packed) -> Plain:
    """Make config.json of a student; only fields of its class are written, and none can name code or a kernel.

    Raises ValueError for a model, or a quantizer, that could not be read again.
    """
    check_class(model)
    kind = type(model)
    given = json.loads(model.config.to_json_string(use_diff=False))
    content = _known_fields(type(model.config), given)
    content |= {name: given[name] for name in FAMILIES[model.config.model_type].more_fields if name in given}
    content |= {"architectures": [kind.__name__], "dtype": "float32", "quantization_config": make_block(model, packed)}
    if getattr(model, "_tied_weights_keys", None) and not packed.tied:
        content["tie_word_embeddings"] = False
    return content


def read_config(
    content: Plain, quantizers: Iterable[type[Quantizer]] = (), activations: bool = True
) -> tuple[Any, Any, Block]:
    """Read the model's class, its configuration and the block.

    Raises ValueError for another method or format, or a key that is not a field of the configuration's class; transformers
    raises its own errors for a value that the class refuses.
    """
    from transformers import CONFIG_MAPPING

    architectures = content.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else None
    kind = model_class(content.get("model_type"), named)
    block = read_block(content["quantization_config"], quantizers, activations)
    config_class = CONFIG_MAPPING[content["model_type"]]
    besides = (*BESIDES, *FAMILIES[content["model_type"]].more_fields)
    _check_fields(config_class, {name: value for name, value in content.items() if name not in besides})
    if content.get("dtype") != "float32":
        raise ValueError(f"dtype={content.get('dtype')!r} where a packed model is float32")
    return kind, config_class(**{name: value for name, value in content.items() if name not in BESIDES}), block


def _fields(config_class: Any) -> tuple[set[str], dict[str, Any]]:
    """Return all fields, and those that are configurations themselves, as CLIP's vision_config, with their classes."""
    names = {each.name for each in dataclasses.fields(config_class)} | {"model_type"}
    return names, dict(getattr(config_class, "sub_configs", None) or {})


def _known_fields(config_class: Any, content: Plain) -> Plain:
    """Leave only fields of the class, also in the configurations inside it."""
    names, parts = _fields(config_class)
    return {
        name: _known_fields(parts[name], value) if name in parts and isinstance(value, dict) else value
        for name, value in content.items()
        if name in names
    }


def _check_fields(config_class: Any, content: Plain) -> None:
    """Raise ValueError for a key that is not a field of the class, also in the configurations inside it."""
    known, parts = _fields(config_class)
    if unknown := sorted(content.keys() - known):
        raise ValueError(f"{unknown[0]!r} is not a field of {config_class.__name__}, and is not honoured: remove it")
    for name in content.keys() & parts.keys():
        if isinstance(content[name], dict):
            _check_fields(parts[name], content[name])


def make_generation(model: Any) -> Plain | None:
    """Make generation_config.json of a language model; None for other models."""
    if not model.can_generate():
        return None
    content = json.loads(model.generation_config.to_json_string())
    return {name: value for name, value in content.items() if name in _generation_fields()}


def read_generation(content: Plain) -> Any:
    """Read the settings of generation; ValueError for a key that transformers' class has not, or a value that it refuses."""
    from transformers import GenerationConfig

    if unknown := sorted(content.keys() - _generation_fields()):
        raise ValueError(f"{unknown[0]!r} is not a field that is read: remove it")
    return GenerationConfig(**content)


def _generation_fields() -> set[str]:
    from transformers import GenerationConfig

    return GenerationConfig().to_dict().keys() - COMPILED
