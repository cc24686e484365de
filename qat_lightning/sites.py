"""Where things are: the only file with module paths of transformers.

A *site* is a named place in every layer where a signal passes; a *part* is a named module that can be quantized.
Shapes: B batch, H heads, N queries, M keys, D head width, E hidden width, C classes.
"""

from __future__ import annotations

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
    "attention.output": "BNE",
}
"""The sites and the axes of their signals.

hidden: X_0 (embeddings, after LayerNorm and dropout) and each layer's output, so one more than there are layers ·
query, key, value: outputs of the three projections · scores: Q Kᵀ/√D + mask · probs: softmax, before dropout ·
context: P V, each head · projection: W_O·context, before dropout, residual and LayerNorm (AO in arXiv:2302.11812) ·
output: after projection, residual and LayerNorm (Y in arXiv:2211.11014, released code)."""

CORE_SITES = {f"attention.{port}" for port in ("scores", "probs", "context")}
"""The sites that exist only where attention is opened."""


@dataclass(frozen=True)
class Family:
    """Module paths of one model family; those of the model relative to its base model, those of a layer to the layer."""

    embeddings: tuple[str, ...]  # the first that exists yields X_0
    layers: str
    attention: str  # calls the attention function, and so holds the core
    output: str  # yields Y
    layer_parts: dict[str, str]
    base_parts: dict[str, str] = field(default_factory=dict)
    head_parts: dict[str, str] = field(default_factory=dict)  # relative to the whole model


def _bert_like(base: dict[str, str] | None = None, head: dict[str, str] | None = None, project: bool = False) -> Family:
    return Family(
        embeddings=("embeddings_project", "embeddings") if project else ("embeddings",),
        layers="encoder.layer",
        attention="attention.self",
        output="attention.output",
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


# RoBERTa's and ELECTRA's classification heads hold the dense layer that BERT calls its pooler.
_DENSE_HEAD = {"pooler": "classifier.dense", "head": "classifier.out_proj"}

FAMILIES = {
    "bert": _bert_like(base={"pooler": "pooler.dense"}),
    "roberta": _bert_like(head=_DENSE_HEAD),
    "electra": _bert_like(base={"embeddings.project": "embeddings_project"}, head=_DENSE_HEAD, project=True),
    "distilbert": Family(
        embeddings=("embeddings",),
        layers="transformer.layer",
        attention="attention",
        output="sa_layer_norm",
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
    """The modules whose output is the signal of `site`, first layer to last; `logits` has none (it is the model's output).

    Raises:
        ValueError: an unknown site or family; a site of the opened attention where it is not open.
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
    place = table.output if site == "attention.output" else table.layer_parts[site]
    return [f"{layer}.{place}" for layer in layers]


def part_paths(model: nn.Module) -> dict[str, str]:
    """Part name → module path, in the model's order: `embeddings.word`, `layers.0.attention.query`, …, `pooler`, `head`."""
    table, base = family(model), _base(model)
    parts = {name: base + path for name, path in table.base_parts.items() if name != "pooler"}
    for index, layer in enumerate(layer_paths(model)):
        parts |= {f"layers.{index}.{name}": f"{layer}.{path}" for name, path in table.layer_parts.items()}
    parts |= {name: base + path for name, path in table.base_parts.items() if name == "pooler"} | table.head_parts
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
