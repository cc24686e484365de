"""Random tiny models and batches from any configuration of transformers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)

from qat_lightning.models.families import FAMILIES

LAYERS, VOCABULARY, CLASSES = 2, 64, 3
SMALL = {
    "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "intermediate_size": 48, "embedding_size": 16, "pooler_hidden_size": 32, "vocab_size": VOCABULARY, "num_labels": CLASSES,
    "initializer_range": 0.3,
}  # fmt: skip
"""Sizes of the model. A head of width 16 has a root that is a power of 2; the spread makes attention far from uniform."""


def shrunk(config: PretrainedConfig) -> PretrainedConfig:
    """Copy a configuration with few, narrow layers and a small vocabulary."""
    small: Any = copy.deepcopy(config)
    small.architectures = []  # of several classes for one head, transformers takes the first
    for name in getattr(small, "sub_configs", None) or {}:
        setattr(small, name, shrunk(getattr(small, name)))
    for name, value in SMALL.items():
        if getattr(small, name, None) is not None:
            setattr(small, name, value)
    if isinstance(getattr(small, "image_size", None), int):
        small.image_size = 2 * small.patch_size
    for name, value in vars(small).items():
        if name.endswith("_token_id") and isinstance(value, int) and value >= VOCABULARY:
            setattr(small, name, 0)
        elif "layer" in name and isinstance(value, list):
            setattr(small, name, value[:LAYERS])
    return small


def make_model(config: PretrainedConfig, seed: int) -> nn.Module:
    """Make a model in evaluation mode; biases and normalizations are drawn too, else a lost one would not be seen."""
    known = FAMILIES.get(config.model_type)
    auto: Any = AutoModelForSequenceClassification
    if known is not None and known.causal:
        auto = AutoModelForCausalLM
    elif type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        auto = AutoModelForImageClassification
    torch.manual_seed(seed)
    model: nn.Module = auto.from_config(copy.deepcopy(config), trust_remote_code=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def make_batch(config: PretrainedConfig, seed: int, lengths: tuple[int, ...]) -> dict[str, Tensor]:
    """Make images, or texts of these lengths, padded to the longest."""
    generator = torch.Generator().manual_seed(seed)
    if type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        images: Any = getattr(config, "vision_config", config)
        shape = (len(lengths), getattr(images, "num_channels", 3), images.image_size, images.image_size)
        return {"pixel_values": torch.randn(shape, generator=generator)}
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    tokens = torch.randint(5, VOCABULARY, mask.shape, generator=generator)
    return {"input_ids": tokens.where(mask, torch.tensor(config.pad_token_id or 0)), "attention_mask": mask.long()}
