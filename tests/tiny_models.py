"""Tiny, randomly initialised models of each family, and batches for them."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BeitConfig,
    BeitForImageClassification,
    BertConfig,
    BertForSequenceClassification,
    CamembertConfig,
    CamembertForSequenceClassification,
    CLIPConfig,
    CLIPForImageClassification,
    Data2VecTextConfig,
    Data2VecTextForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    EuroBertConfig,
    EuroBertForSequenceClassification,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    SiglipConfig,
    SiglipForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

TEXT_FAMILIES = ("bert", "roberta", "electra", "distilbert")
IMAGE_FAMILIES = ("vit", "deit")
FAMILIES = TEXT_FAMILIES + IMAGE_FAMILIES
DECODERS = ("gpt2", "llama", "mistral", "qwen2")
OTHER_TEXTS = ("xlm-roberta", "camembert", "data2vec-text", "mpnet", "albert", "deberta-v2", "modernbert", "eurobert")
OTHER_IMAGES = ("beit", "dinov2", "dinov2_with_registers", "clip", "siglip")
OTHER_DECODERS = ("qwen3", "gemma3_text", "phi3")
"""Families that share a table or the code of one above; `tests/models/test_families.py` tests all."""

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
_BEIT = {"layer_scale_init_value": 0.1, "use_relative_position_bias": True}
_DINOV2 = {name: value for name, value in _ENCODER.items() if name != "intermediate_size"}
_DINOV2 |= {"mlp_ratio": 2, "layerscale_value": 0.5} | _IMAGES
_VISION = {"vision_config": {name: value for name, value in (_ENCODER | _IMAGES).items() if name != "num_labels"}}
_VISION |= {"text_config": {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}}
_VISION |= {"num_labels": CLASSES}
_MODERNBERT = {"local_attention": 6, "global_attn_every_n_layers": 2, "cls_token_id": 2, "sep_token_id": 3}
_MODERNBERT |= {"bos_token_id": 2, "eos_token_id": 3} | _ENCODER | _TEXT
_DEBERTA = {"relative_attention": True, "pos_att_type": "p2c|c2p", "position_buckets": 4, "share_att_key": True}
_DEBERTA |= {"norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0}
_EUROBERT = {"num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 4} | _ENCODER | _TEXT
_GEMMA3 = _LLAMA | {
    "head_dim": WIDTH // HEADS,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
}
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
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaForSequenceClassification, _ENCODER | _TEXT),
    "camembert": (CamembertConfig, CamembertForSequenceClassification, _ENCODER | _TEXT),
    "data2vec-text": (Data2VecTextConfig, Data2VecTextForSequenceClassification, _ENCODER | _TEXT),
    "mpnet": (MPNetConfig, MPNetForSequenceClassification, _ENCODER | _TEXT | {"num_attention_heads": 2}),
    "albert": (AlbertConfig, AlbertForSequenceClassification, _ENCODER | _TEXT | {"embedding_size": 16}),
    "deberta-v2": (DebertaV2Config, DebertaV2ForSequenceClassification, _ENCODER | _TEXT | _DEBERTA),
    "modernbert": (ModernBertConfig, ModernBertForSequenceClassification, _MODERNBERT),
    "eurobert": (EuroBertConfig, EuroBertForSequenceClassification, _EUROBERT),
    "beit": (BeitConfig, BeitForImageClassification, _ENCODER | _IMAGES | _BEIT),
    "dinov2": (Dinov2Config, Dinov2ForImageClassification, _DINOV2),
    "dinov2_with_registers": (
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersForImageClassification,
        _DINOV2 | {"num_register_tokens": 2},
    ),
    "clip": (CLIPConfig, CLIPForImageClassification, _VISION),
    "siglip": (SiglipConfig, SiglipForImageClassification, _VISION),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, _LLAMA | {"head_dim": WIDTH // HEADS}),
    "gemma3_text": (Gemma3TextConfig, Gemma3ForCausalLM, _GEMMA3),
    "phi3": (Phi3Config, Phi3ForCausalLM, _LLAMA | {"bos_token_id": 2, "eos_token_id": 3}),
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
    if family in IMAGE_FAMILIES + OTHER_IMAGES:
        return {"pixel_values": torch.randn(len(lengths), 3, IMAGE, IMAGE, generator=generator), "labels": labels}
    attention_mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    input_ids = torch.randint(PAD + 1, VOCABULARY, attention_mask.shape, generator=generator)
    input_ids = input_ids.where(attention_mask.bool(), torch.tensor(PAD))
    if family in DECODERS + OTHER_DECODERS:
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
