"""Sites and parts of a model → the paths of their modules."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from torch import nn

from qat_lightning.models.families import FAMILIES, OTHER_HEADS, Family
from qat_lightning.models.sites import AXES, CORE_SITES, FUSED, check_site


def family(model: nn.Module) -> Family:
    """Raises ValueError for a family without a table."""
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in FAMILIES:
        near = difflib.get_close_matches(kind, FAMILIES, 1, 0.4)
        nearest = f"; the nearest is {near[0]!r}" if near else ""
        raise ValueError(
            f"no table of sites for the model family {kind!r}{nearest}; known: {', '.join(FAMILIES)} (docs/families.md says how"
            " to add one)"
        )
    return FAMILIES[kind]


def layer_config(model: nn.Module) -> Any:
    """Return the configuration that describes the layers: depth, image size, number of channels."""
    name = family(model).config
    return model.config if name is None else getattr(model.config, name)


def layer_paths(model: nn.Module) -> list[str]:
    """The path of each layer, first to last; a shared layer is there once for each of its positions.

    Raises:
        ValueError: several groups of shared layers.
    """
    stack = base_prefix(model) + family(model).layers
    paths = [f"{stack}.{index}" for index in range(len(model.get_submodule(stack)))]  # type: ignore[arg-type]
    if not family(model).shared:
        return paths
    config: Any = model.config
    groups = config.num_hidden_groups
    if len(paths) * groups > 1:
        raise ValueError(
            f"{type(model).__name__} has num_hidden_groups={groups} of inner_group_num={len(paths)} layers: only models with one"
            " layer at all positions are supported, which the published ones are"
        )
    return paths * config.num_hidden_layers


def attention_paths(model: nn.Module) -> list[str]:
    """The path of each module that calls the attention function; that of a shared layer once."""
    return [f"{layer}.{family(model).attention}" for layer in dict.fromkeys(layer_paths(model))]


def has_site(model: nn.Module, site: str) -> bool:
    """Tell whether the model's family has that site, its attention open or not."""
    return not (family(model).fused and check_site(site) in FUSED)


def site_paths(model: nn.Module, site: str) -> list[str]:
    """The modules whose output (of `INPUT_SITES`: input) is the signal of `site`, first layer to last.

    `logits` has none: it is the model's output.

    Raises:
        ValueError: an unknown site or family; a site that the family does not have; a site of the opened attention where
            it is not open.
    """
    table, layers = family(model), layer_paths(model)
    if site not in CORE_SITES and check_site(site) == "logits":
        return []
    if site == "hidden":
        return [_first(model, [base_prefix(model) + path for path in table.embeddings]), *layers]
    if site in CORE_SITES:
        port = site.removeprefix("attention.")
        paths = [f"{layer}.{table.attention}.core.{port}" for layer in layers]
        if not _exists(model, paths[0]):
            raise ValueError(f"site {site!r} needs the opened attention: call open_attention(model) first")
        return paths
    places = table.layer_parts | {"attention.output": table.output, "attention.residual": table.residual}
    if not has_site(model, site):
        kind, had = model.config.model_type, [name for name in AXES if has_site(model, name)]  # type: ignore[union-attr]
        raise ValueError(
            f"a {kind} model has no site {site!r}: its query, key and value are one layer; sites: {', '.join(had)}"
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
                " choose intervention=without_map with intervention_schedule=gradual_without_map, output or context, which stop"
                " it for all three"
            )
        paths.append([f"{layer}.{table.layer_parts[table.fused]}" for layer in layer_paths(model)])
        wanted = [site for site in wanted if site not in FUSED]
    return paths + [site_paths(model, site) for site in wanted]


def layer_pairs(site: str, student: int, teacher: int) -> list[tuple[int, int]]:
    """(student's, teacher's) positions at `site`, for models with that many signals of it.

    Where the teacher has k times as many layers, the student's layer i goes with the last of the k that it replaces,
    k·i + k − 1, and hidden state i, counted from the embeddings, with k·i (arXiv:2101.05938, released code).

    Raises:
        ValueError: the teacher's depth is not a multiple of the student's.
    """
    if student == teacher:
        return [(layer, layer) for layer in range(student)]
    embeddings = 1 if site == "hidden" else 0
    times, rest = divmod(teacher - embeddings, max(student - embeddings, 1))
    if rest or not times:
        raise ValueError(
            f"{site}: the student has {student} signals and the teacher {teacher}, and its depth is not a multiple of the"
            " student's: say which belong together with layers=[[student, teacher], …] (an intervention needs a multiple)"
        )
    return [(layer, times * layer + (0 if embeddings else times - 1)) for layer in range(student)]


def part_paths(model: nn.Module) -> dict[str, str]:
    """Part name → module path, in the model's order: `embeddings.word`, `layers.0.attention.query`, …, `pooler`, `head`.

    A layer that is shared by all positions is `layers.0`.
    """
    table, base = family(model), base_prefix(model)
    parts = {name: base + path for name, path in table.base_parts.items() if name != "pooler"}
    for index, layer in enumerate(dict.fromkeys(layer_paths(model))):
        parts |= {f"layers.{index}.{name}": f"{layer}.{path}" for name, path in table.layer_parts.items()}
    parts |= {name: base + path for name, path in table.base_parts.items() if name == "pooler"} | table.head_parts
    if other := next((path for path in OTHER_HEADS if _exists(model, path)), None):
        parts["head"] = other
    return {name: path for name, path in parts.items() if _exists(model, path)}


def part_kind(part: str) -> str:
    """The part's name without its layer: `layers.3.attention.query` → `attention.query`."""
    return part.split(".", 2)[2] if part.startswith("layers.") else part


def base_prefix(model: nn.Module) -> str:
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
