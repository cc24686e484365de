"""Module paths of each model family: the only file that names the modules of transformers."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """Module paths of one model family; those of the model relative to its base model, those of a layer to the layer."""

    embeddings: tuple[str, ...]  # the first that exists yields X_0
    layers: str
    attention: str  # calls the attention function, and so holds the core
    output: str  # yields Y
    residual: str  # takes the sum of projection and residual
    layer_parts: dict[str, str]
    base_parts: dict[str, str] = field(default_factory=dict)
    head_parts: dict[str, str] = field(default_factory=dict)  # relative to the whole model
    fused: str | None = None  # the layer part that is query, key and value in one
    config: str | None = (
        None  # the field of the configuration that describes the layers, if not the configuration itself
    )
    first_layer_differs: bool = False  # it has other modules than the layers after it
    any_image_size: bool = False  # the position embedding is interpolated for images of another size
    reroute: bool = False  # its attention does not call transformers' interface: its class is replaced
    causal: bool = False  # a token sees none after it, so it can predict the next one


def _bert_like(base: dict[str, str] | None = None, head: dict[str, str] | None = None, project: bool = False) -> Family:
    return Family(
        embeddings=("embeddings_project", "embeddings") if project else ("embeddings",),
        layers="encoder.layer",
        attention="attention.self",
        output="attention.output",
        residual="attention.output.LayerNorm",
        layer_parts={
            "attention.query": "attention.self.query",
            "attention.key": "attention.self.key",
            "attention.value": "attention.self.value",
            "attention.projection": "attention.output.dense",
            "feedforward.in": "intermediate.dense",
            "feedforward.out": "output.dense",
        },
        base_parts={
            "embeddings.word": "embeddings.word_embeddings",
            "embeddings.position": "embeddings.position_embeddings",
            "embeddings.token_type": "embeddings.token_type_embeddings",
        }
        | (base or {}),
        head_parts=head or {"head": "classifier"},
    )


def _vit_like(layers: str = "layers", norm: str = "layernorm_after", any_image_size: bool = False) -> Family:
    return Family(
        embeddings=("embeddings",),
        layers=layers,
        attention="attention",
        output=norm,
        residual=norm,
        any_image_size=any_image_size,
        layer_parts={
            "attention.query": "attention.q_proj",
            "attention.key": "attention.k_proj",
            "attention.value": "attention.v_proj",
            "attention.projection": "attention.o_proj",
            "feedforward.in": "mlp.fc1",
            "feedforward.out": "mlp.fc2",
        },
        head_parts={"head": "classifier"},
    )


def _clip_vision(embeddings: str) -> Family:
    """The image encoder of CLIP and its relatives, inside a classifier."""
    return Family(
        embeddings=(f"vision_model.{embeddings}",),
        layers="vision_model.encoder.layers",
        attention="self_attn",
        output="layer_norm2",
        residual="layer_norm2",
        config="vision_config",
        layer_parts={
            "attention.query": "self_attn.q_proj",
            "attention.key": "self_attn.k_proj",
            "attention.value": "self_attn.v_proj",
            "attention.projection": "self_attn.out_proj",
            "feedforward.in": "mlp.fc1",
            "feedforward.out": "mlp.fc2",
        },
        base_parts={"embeddings.position": "vision_model.embeddings.position_embedding"},
        head_parts={"head": "classifier"},
    )


def _llama_like(
    norm: str = "post_attention_layernorm", causal: bool = True, head: dict[str, str] | None = None
) -> Family:
    return Family(
        embeddings=("embed_tokens",),
        layers="layers",
        attention="self_attn",
        output=norm,
        residual=norm,
        causal=causal,
        layer_parts={
            "attention.query": "self_attn.q_proj",
            "attention.key": "self_attn.k_proj",
            "attention.value": "self_attn.v_proj",
            "attention.projection": "self_attn.o_proj",
            "feedforward.gate": "mlp.gate_proj",
            "feedforward.in": "mlp.up_proj",
            "feedforward.out": "mlp.down_proj",
        },
        base_parts={"embeddings.word": "embed_tokens"},
        head_parts=head or {"head": "lm_head"},
    )


# RoBERTa's and ELECTRA's classification heads hold the dense layer that BERT calls its pooler.
_DENSE_HEAD = {"pooler": "classifier.dense", "head": "classifier.out_proj"}

OTHER_HEADS = ("qa_outputs", "score")
"""Names of the question-answering head in every family, and of the classifier of decoders."""

FAMILIES = {
    "bert": _bert_like(base={"pooler": "pooler.dense"}),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert", "data2vec-text"), _bert_like(head=_DENSE_HEAD)),
    "electra": _bert_like(base={"embeddings.project": "embeddings_project"}, head=_DENSE_HEAD, project=True),
    "distilbert": Family(
        embeddings=("embeddings",),
        layers="transformer.layer",
        attention="attention",
        output="sa_layer_norm",
        residual="sa_layer_norm",
        layer_parts={
            "attention.query": "attention.q_lin",
            "attention.key": "attention.k_lin",
            "attention.value": "attention.v_lin",
            "attention.projection": "attention.out_lin",
            "feedforward.in": "ffn.lin1",
            "feedforward.out": "ffn.lin2",
        },
        base_parts={
            "embeddings.word": "embeddings.word_embeddings",
            "embeddings.position": "embeddings.position_embeddings",
        },
        head_parts={"pooler": "pre_classifier", "head": "classifier"},
    ),
    "mpnet": Family(
        embeddings=("embeddings",),
        layers="encoder.layer",
        attention="attention.attn",
        output="attention.LayerNorm",
        residual="attention.LayerNorm",
        reroute=True,
        layer_parts={
            "attention.query": "attention.attn.q",
            "attention.key": "attention.attn.k",
            "attention.value": "attention.attn.v",
            "attention.projection": "attention.attn.o",
            "feedforward.in": "intermediate.dense",
            "feedforward.out": "output.dense",
        },
        base_parts={
            "embeddings.word": "embeddings.word_embeddings",
            "embeddings.position": "embeddings.position_embeddings",
        },
        head_parts=_DENSE_HEAD,
    ),
    "modernbert": Family(
        embeddings=("embeddings",),
        layers="layers",
        attention="attn",
        output="mlp_norm",
        residual="mlp_norm",
        fused="attention.query_key_value",
        first_layer_differs=True,  # no normalization before its attention
        layer_parts={
            "attention.query_key_value": "attn.Wqkv",
            "attention.projection": "attn.Wo",
            "feedforward.in": "mlp.Wi",
            "feedforward.out": "mlp.Wo",
        },
        base_parts={"embeddings.word": "embeddings.tok_embeddings"},
        head_parts={"pooler": "head.dense", "head": "classifier"},
    ),
    "eurobert": _llama_like(causal=False, head={"pooler": "dense", "head": "classifier"}),
    **dict.fromkeys(("vit", "deit", "beit"), _vit_like()),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), _vit_like("encoder.layer", "norm2", any_image_size=True)),
    "clip": _clip_vision("pre_layrnorm"),
    "siglip": _clip_vision("embeddings"),
    "gpt2": Family(
        embeddings=("drop",),
        layers="h",
        attention="attn",
        output="ln_2",
        residual="ln_2",
        fused="attention.query_key_value",
        causal=True,
        layer_parts={
            "attention.query_key_value": "attn.c_attn",
            "attention.projection": "attn.c_proj",
            "feedforward.in": "mlp.c_fc",
            "feedforward.out": "mlp.c_proj",
        },
        base_parts={"embeddings.word": "wte", "embeddings.position": "wpe"},
        head_parts={"head": "lm_head"},
    ),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _llama_like()),
    "gemma3_text": _llama_like("pre_feedforward_layernorm"),
    "phi3": Family(
        embeddings=("embed_tokens",),
        layers="layers",
        attention="self_attn",
        output="post_attention_layernorm",
        residual="post_attention_layernorm",
        fused="attention.query_key_value",
        causal=True,
        layer_parts={
            "attention.query_key_value": "self_attn.qkv_proj",
            "attention.projection": "self_attn.o_proj",
            "feedforward.in": "mlp.gate_up_proj",
            "feedforward.out": "mlp.down_proj",
        },
        base_parts={"embeddings.word": "embed_tokens"},
        head_parts={"head": "lm_head"},
    ),
}
"""Families by the `model_type` of their configuration."""
