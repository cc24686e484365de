"""Where things are: the only file with module paths of transformers.

A *site* is a named place in every layer where a signal passes; a *part* is a named module that can be quantized.
Shapes: B batch, H heads, N queries, M keys, D head width, E hidden width, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

AXES = {
    "logits": "BC",
    "hidden": "BNE",
    "attention.query": "BNE",
    "attention.key": "BNE",
    "attention.value": "BNE",
    "attention.scores": "BHNM",
    "attention.probs": "BHNM",
    "attention.context": "BHND",
    "attention.projection": "BNE",
    "attention.residual": "BNE",
    "attention.output": "BNE",
}
"""The sites and the axes of their signals.

hidden: X_0 (embeddings, after LayerNorm and dropout) and each layer's output, so one more than there are layers ·
query, key, value: outputs of the three projections · scores: Q Kᵀ/√D + mask · probs: softmax, before dropout ·
context: P V, each head · projection: W_O·context, before dropout, residual and LayerNorm (AO in arXiv:2302.11812) ·
residual: the sum of projection and residual, before LayerNorm (Y in the text of arXiv:2211.11014) ·
output: after projection, residual and LayerNorm (Y in its released code)."""

CORE_SITES = {f"attention.{port}" for port in ("scores", "probs", "context")}
"""The sites that exist only where attention is opened."""

FUSED = {"attention.query", "attention.key", "attention.value"}
"""The sites that some families compute in one layer."""

INPUT_SITES = {"attention.residual"}
"""The sites whose signal is what goes into their module, not what comes out."""


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


def _vit_like() -> Family:
    return Family(
        embeddings=("embeddings",),
        layers="layers",
        attention="attention",
        output="layernorm_after",
        residual="layernorm_after",
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


def _llama_like() -> Family:
    return Family(
        embeddings=("embed_tokens",),
        layers="layers",
        attention="self_attn",
        output="post_attention_layernorm",
        residual="post_attention_layernorm",
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
        head_parts={"head": "lm_head"},
    )


# RoBERTa's and ELECTRA's classification heads hold the dense layer that BERT calls its pooler.
_DENSE_HEAD = {"pooler": "classifier.dense", "head": "classifier.out_proj"}

QUESTION_HEAD = "qa_outputs"
"""What every family calls its question-answering head."""

FAMILIES = {
    "bert": _bert_like(base={"pooler": "pooler.dense"}),
    "roberta": _bert_like(head=_DENSE_HEAD),
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
    "vit": _vit_like(),
    "deit": _vit_like(),
    "gpt2": Family(
        embeddings=("drop",),
        layers="h",
        attention="attn",
        output="ln_2",
        residual="ln_2",
        fused="attention.query_key_value",
        layer_parts={
            "attention.query_key_value": "attn.c_attn",
            "attention.projection": "attn.c_proj",
            "feedforward.in": "mlp.c_fc",
            "feedforward.out": "mlp.c_proj",
        },
        base_parts={"embeddings.word": "wte", "embeddings.position": "wpe"},
        head_parts={"head": "lm_head"},
    ),
    "llama": _llama_like(),
    "mistral": _llama_like(),
    "qwen2": _llama_like(),
}
"""Families by the `model_type` of their configuration."""


def family(model: nn.Module) -> Family:
    """Raises ValueError for a family without a table."""
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in FAMILIES:
        raise ValueError(f"no table of sites for the model family {kind!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def check_site(site: str) -> str:
    """The site itself; raises ValueError for a name that is none."""
    if site not in AXES:
        raise ValueError(f"unknown site {site!r}; sites: {', '.join(AXES)}")
    return site


def layer_paths(model: nn.Module) -> list[str]:
    """The path of each layer, first to last."""
    stack = _base(model) + family(model).layers
    return [f"{stack}.{index}" for index in range(len(model.get_submodule(stack)))]  # type: ignore[arg-type]


def attention_paths(model: nn.Module) -> list[str]:
    """The path, in each layer, of the module that calls the attention function."""
    return [f"{layer}.{family(model).attention}" for layer in layer_paths(model)]


def site_paths(model: nn.Module, site: str) -> list[str]:
    """The modules whose output (of `INPUT_SITES`: input) is the signal of `site`, first layer to last.

    `logits` has none: it is the model's output.

    Raises:
        ValueError: an unknown site or family; a site that the family does not have; a site of the opened attention where
            it is not open.
    """
    table, layers = family(model), layer_paths(model)
    if check_site(site) == "logits":
        return []
    if site == "hidden":
        return [_first(model, [_base(model) + path for path in table.embeddings]), *layers]
    if site in CORE_SITES:
        port = site.removeprefix("attention.")
        paths = [f"{attention}.core.{port}" for attention in attention_paths(model)]
        if not _exists(model, paths[0]):
            raise ValueError(f"site {site!r} needs the opened attention: call open_attention(model) first")
        return paths
    places = table.layer_parts | {"attention.output": table.output, "attention.residual": table.residual}
    if site not in places:
        kind, had = model.config.model_type, [name for name in AXES if name in places or name in CORE_SITES]  # type: ignore[union-attr]
        raise ValueError(
            f"a {kind} model has no site {site!r}: its query, key and value are one layer; sites: hidden, {', '.join(had)}"
        )
    return [f"{layer}.{places[site]}" for layer in layers]


def entrances(model: nn.Module, sites: Iterable[str]) -> list[list[str]]:
    """The modules into which a gradient must not pass, so that none passes through these sites; a list for each module kind.

    Raises:
        ValueError: as `site_paths`; or the family computes the site in one layer with others that are not named.
    """
    table, wanted, paths = family(model), list(sites), []
    if table.fused and FUSED.intersection(wanted):
        if missing := FUSED.difference(wanted):
            raise ValueError(
                f"a {model.config.model_type} model computes query, key and value in one layer, so the gradient cannot"  # type: ignore[union-attr]
                f" be stopped for {', '.join(sorted(FUSED.intersection(wanted)))} and not for {', '.join(sorted(missing))}:"
                " choose intervention=output or context, which stop it for all three"
            )
        paths.append([f"{layer}.{table.layer_parts[table.fused]}" for layer in layer_paths(model)])
        wanted = [site for site in wanted if site not in FUSED]
    return paths + [site_paths(model, site) for site in wanted]


def layer_pairs(site: str, student: int, teacher: int) -> list[tuple[int, int]]:
    """(student's, teacher's) positions at `site`, for models with that many signals of it.

    Where the teacher has k times as many layers, the student's layer i goes with the last of the k that it stands for,
    k·i + k − 1, and hidden state i, counted from the embeddings, with k·i (arXiv:2101.05938, released code).

    Raises:
        ValueError: the teacher's depth is no multiple of the student's.
    """
    if student == teacher:
        return [(layer, layer) for layer in range(student)]
    embeddings = 1 if site == "hidden" else 0
    times, rest = divmod(teacher - embeddings, max(student - embeddings, 1))
    if rest or not times:
        raise ValueError(
            f"{site}: the student has {student} signals and the teacher {teacher}, and its depth is no multiple of the"
            " student's: say which belong together with layers=[[student, teacher], …] (an intervention needs a multiple)"
        )
    return [(layer, times * layer + (0 if embeddings else times - 1)) for layer in range(student)]


def part_paths(model: nn.Module) -> dict[str, str]:
    """Part name → module path, in the model's order: `embeddings.word`, `layers.0.attention.query`, …, `pooler`, `head`."""
    table, base = family(model), _base(model)
    parts = {name: base + path for name, path in table.base_parts.items() if name != "pooler"}
    for index, layer in enumerate(layer_paths(model)):
        parts |= {f"layers.{index}.{name}": f"{layer}.{path}" for name, path in table.layer_parts.items()}
    parts |= {name: base + path for name, path in table.base_parts.items() if name == "pooler"} | table.head_parts
    if _exists(model, QUESTION_HEAD):
        parts["head"] = QUESTION_HEAD
    return {name: path for name, path in parts.items() if _exists(model, path)}


def part_kind(part: str) -> str:
    """The part's name without its layer: `layers.3.attention.query` → `attention.query`."""
    return part.split(".", 2)[2] if part.startswith("layers.") else part


def _base(model: nn.Module) -> str:
    """The dotted prefix of the base model inside `model`; empty for a base model itself."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and hasattr(model, prefix) else ""


def _first(model: nn.Module, paths: list[str]) -> str:
    return next(path for path in paths if _exists(model, path))


def _exists(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True
