"""Tiny, randomly initialised models of each family, and batches for them."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

TEXT_FAMILIES = ("bert", "roberta", "electra", "distilbert")
IMAGE_FAMILIES = ("vit", "deit")
FAMILIES = TEXT_FAMILIES + IMAGE_FAMILIES
DECODERS = ("gpt2", "llama", "mistral", "qwen2")

LAYERS, HEADS, WIDTH, INNER, CLASSES = 2, 4, 32, 48, 3
VOCABULARY, POSITIONS, PAD = 80, 24, 1
IMAGE, PATCH = 16, 8
LENGTHS = (9, 6, 3)
"""Valid tokens of each sample of a text batch; the rest is padding."""

# Wider than transformers' 0.02, so that attention is far from uniform and some activations pass the clip of 2.5.
_SPREAD = 0.3
_ENCODER = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "initializer_range": _SPREAD,
    "num_labels": CLASSES,
}
_TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "pad_token_id": PAD}
_IMAGES = {"image_size": IMAGE, "patch_size": PATCH}
_DISTILBERT = {
    "dim": WIDTH,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "hidden_dim": INNER,
    "initializer_range": _SPREAD,
    "num_labels": CLASSES,
}
_GPT2 = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": INNER, "n_positions": POSITIONS}
_GPT2 |= {"vocab_size": VOCABULARY, "initializer_range": _SPREAD, "use_cache": False}
_LLAMA = {"num_key_value_heads": 2, "intermediate_size": INNER, "use_cache": False}
_LLAMA |= {name: _ENCODER[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")} | _TEXT
_LLAMA |= {"initializer_range": _SPREAD}
_MAKERS = {
    "bert": (BertConfig, BertForSequenceClassification, _ENCODER | _TEXT),
    "roberta": (RobertaConfig, RobertaForSequenceClassification, _ENCODER | _TEXT),
    "electra": (ElectraConfig, ElectraForSequenceClassification, _ENCODER | _TEXT | {"embedding_size": 16}),
    "distilbert": (DistilBertConfig, DistilBertForSequenceClassification, _DISTILBERT | _TEXT),
    "vit": (ViTConfig, ViTForImageClassification, _ENCODER | _IMAGES),
    "deit": (DeiTConfig, DeiTForImageClassification, _ENCODER | _IMAGES),
    "gpt2": (GPT2Config, GPT2LMHeadModel, _GPT2),
    "llama": (LlamaConfig, LlamaForCausalLM, _LLAMA),
    "mistral": (MistralConfig, MistralForCausalLM, _LLAMA),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, _LLAMA),
}


def tiny_model(family: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A randomly initialised model in evaluation mode; `changes` are fields of its configuration.

    Biases and LayerNorms are drawn as well: transformers starts them at 0 and 1, which would hide a lost one.
    """
    config_class, model_class, fields = _MAKERS[family]
    torch.manual_seed(seed)
    model = model_class(config_class(**(fields | changes)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(
                    torch.randn_like(parameter) * 0.1 + (1.0 if "orm" in name and "weight" in name else 0.0)
                )
    return model.eval()


def tiny_batch(family: str, seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> dict[str, Tensor]:
    """A batch with labels; text is padded to the longest of `lengths`."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (len(lengths),), generator=generator)
    if family in IMAGE_FAMILIES:
        return {"pixel_values": torch.randn(len(lengths), 3, IMAGE, IMAGE, generator=generator), "labels": labels}
    attention_mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    input_ids = torch.randint(PAD + 1, VOCABULARY, attention_mask.shape, generator=generator)
    input_ids = input_ids.where(attention_mask.bool(), torch.tensor(PAD))
    if family in DECODERS:
        labels = torch.cat([input_ids[:, 1:], torch.full((len(lengths), 1), -100)], 1)
        labels = labels.where(torch.cat([attention_mask[:, 1:], torch.zeros(len(lengths), 1)], 1).bool(), -100)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def pad_batch(batch: dict[str, Tensor], columns: int) -> dict[str, Tensor]:
    """The same text batch with that many more columns of padding."""
    rows = len(batch["input_ids"])
    more = {
        "input_ids": torch.full((rows, columns), PAD),
        "attention_mask": torch.zeros(rows, columns, dtype=torch.long),
    }
    return {name: torch.cat([value, more[name]], 1) if name in more else value for name, value in batch.items()}


def without_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the model itself takes."""
    return {name: value for name, value in batch.items() if name != "labels"}
