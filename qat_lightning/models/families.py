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
    shared: bool = False  # one layer runs at each position, num_hidden_layers times
    projects_positions: str | None = (
        None  # the field of the configuration with which query and key project relative positions as well
    )
    more_fields: tuple[str, ...] = ()  # of the configuration, which its class reads but does not declare
    causal: bool = False  # a token sees none after it, so it can predict the next one


_WORDS_AND_POSITIONS = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
}
_WITH_TOKEN_TYPES = _WORDS_AND_POSITIONS | {"embeddings.token_type": "embeddings.token_type_embeddings"}


def _separate(query: str, key: str, value: str, projection: str, inner: str, outer: str) -> dict[str, str]:
    """Name the parts of a layer with a module for each of query, key and value."""
    attention = {"attention.query": query, "attention.key": key, "attention.value": value}
    return attention | {"attention.projection": projection, "feedforward.in": inner, "feedforward.out": outer}


def _fused(all_three: str, projection: str, inner: str, outer: str) -> dict[str, str]:
    """Name the parts of a layer with one module for query, key and value."""
    parts = {"attention.query_key_value": all_three, "attention.projection": projection}
    return parts | {"feedforward.in": inner, "feedforward.out": outer}


def _bert_like(base: dict[str, str] | None = None, head: dict[str, str] | None = None, project: bool = False) -> Family:
    return Family(
        embeddings=("embeddings_project", "embeddings") if project else ("embeddings",),
        layers="encoder.layer",
        attention="attention.self",
        output="attention.output",
        residual="attention.output.LayerNorm",
        layer_parts=_separate(
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        ),
        base_parts=_WITH_TOKEN_TYPES | (base or {}),
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
        layer_parts=_separate(
            "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2"
        ),
        base_parts={"embeddings.patch": "embeddings.patch_embeddings.projection"},
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
        layer_parts=_separate(
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"
        ),
        base_parts={
            "embeddings.patch": "vision_model.embeddings.patch_embedding",
            "embeddings.position": "vision_model.embeddings.position_embedding",
        },
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
        layer_parts=_separate(
            "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2"
        ),
        base_parts=_WORDS_AND_POSITIONS,
        head_parts={"pooler": "pre_classifier", "head": "classifier"},
    ),
    "mpnet": Family(
        embeddings=("embeddings",),
        layers="encoder.layer",
        attention="attention.attn",
        output="attention.LayerNorm",
        residual="attention.LayerNorm",
        reroute=True,
        layer_parts=_separate(
            "attention.attn.q",
            "attention.attn.k",
            "attention.attn.v",
            "attention.attn.o",
            "intermediate.dense",
            "output.dense",
        ),
        base_parts=_WORDS_AND_POSITIONS,
        head_parts=_DENSE_HEAD,
    ),
    "albert": Family(
        embeddings=("encoder.embedding_hidden_mapping_in",),
        layers="encoder.albert_layer_groups.0.albert_layers",
        attention="attention",
        output="attention.LayerNorm",
        residual="attention.LayerNorm",
        shared=True,
        layer_parts=_separate(
            "attention.query", "attention.key", "attention.value", "attention.dense", "ffn", "ffn_output"
        ),
        base_parts=_WITH_TOKEN_TYPES
        | {
            "embeddings.project": "encoder.embedding_hidden_mapping_in",
            "pooler": "pooler",
        },
        head_parts={"head": "classifier"},
    ),
    "deberta-v2": Family(
        embeddings=("embeddings",),
        layers="encoder.layer",
        attention="attention.self",
        output="attention.output",
        residual="attention.output.LayerNorm",
        reroute=True,
        projects_positions="share_att_key",
        more_fields=(
            "attention_head_size",
            "cls_dropout",
            "conv_act",
            "conv_groups",
            "conv_kernel_size",
            "embedding_size",
            "norm_rel_ebd",
            "pooler_hidden_size",
            "position_buckets",
            "share_att_key",
        ),
        layer_parts=_separate(
            "attention.self.query_proj",
            "attention.self.key_proj",
            "attention.self.value_proj",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        )
        | {
            "attention.position_key": "attention.self.pos_key_proj",
            "attention.position_query": "attention.self.pos_query_proj",
        },
        base_parts=_WITH_TOKEN_TYPES
        | {
            "embeddings.project": "embeddings.embed_proj",
        },
        head_parts={"pooler": "pooler.dense", "head": "classifier"},
    ),
    "modernbert": Family(
        embeddings=("embeddings",),
        layers="layers",
        attention="attn",
        output="mlp_norm",
        residual="mlp_norm",
        fused="attention.query_key_value",
        first_layer_differs=True,  # no normalization before its attention
        layer_parts=_fused("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"),
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
        layer_parts=_fused("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
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
        layer_parts=_fused("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
        base_parts={"embeddings.word": "embed_tokens"},
        head_parts={"head": "lm_head"},
    ),
}
"""Families by the `model_type` of their configuration."""
