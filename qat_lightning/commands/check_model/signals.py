"""Whether the rows of a family's table name the modules that return what the sites say."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qat_lightning.distillation.intervention import Intervention
from qat_lightning.models.capture import Batch, SignalCapture, Signals
from qat_lightning.models.module_paths import (
    has_site,
    layer_config,
    layer_paths,
    site_paths,
)
from qat_lightning.models.sites import AXES, FACTORS

READ_BY = {
    "attention.query": "attention.query_factor",
    "attention.key": "attention.key_factor",
    "attention.value": "attention.context",
}
"""Projection → a signal that is 0 where the projection is."""


@torch.no_grad()
def check_signals(model: nn.Module, batch: Batch) -> None:
    """Check the signals of all sites of a model with opened attention.

    Raises:
        ValueError: a row whose module is not where the site is.
    """
    sites = [site for site in AXES if has_site(model, site)]
    signals = SignalCapture(model, [*sites, *FACTORS])(batch)
    _check_shapes(model, sites, signals)
    if not torch.equal(_first_input(model, batch), signals["hidden"][0]):
        raise ValueError("embeddings: its output is not the input of the first layer")
    for layer in range(len(layer_paths(model))):
        _check_layer(model, signals, layer)
    for site, reader in READ_BY.items():
        if has_site(model, site) and _with_zeros(model, signals, site, reader, batch)[reader][0].any():
            raise ValueError(f"layer_parts[{site!r}]: {reader} does not follow from its output")
    residual = _with_zeros(model, signals, "attention.projection", "attention.residual", batch)["attention.residual"][0]
    if not torch.equal(residual, signals["hidden"][0]) or torch.equal(residual, signals["attention.residual"][0]):
        raise ValueError(
            "residual: its input is not the sum of the layer's input and layer_parts['attention.projection']"
        )


def _check_shapes(model: nn.Module, sites: list[str], signals: Signals) -> None:
    batch, tokens, width = signals["hidden"][0].shape
    heads = layer_config(model).num_attention_heads
    context = signals["attention.context"][0]
    sizes = {"B": batch, "N": tokens, "M": tokens, "H": heads, "D": context.shape[-1], "E": width}
    for site in sites:
        count = len(layer_paths(model)) + (site == "hidden")
        if site != "logits" and len(signals[site]) != count:
            raise ValueError(f"{site}: {len(signals[site])} signals in one pass of {count} layers")
        expected = [sizes.get(axis, 0) for axis in AXES[site]]
        if site in READ_BY:  # keys and values of fewer heads, heads of another width than E/H
            expected[-1:] = []
        for signal in signals[site] if site != "logits" else []:
            if list(signal.shape[: len(expected)]) != expected or signal.dim() != len(AXES[site]):
                raise ValueError(f"{site}: a signal of shape {tuple(signal.shape)} where {AXES[site]} are {expected}")


def _check_layer(model: nn.Module, signals: Signals, layer: int) -> None:
    query, key, mask = (signals[name][layer] for name in FACTORS)
    scores = query @ key.repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(2, 3) + mask
    if not torch.allclose(scores.softmax(-1), signals["attention.probs"][layer], atol=1e-5):
        raise ValueError(f"attention: the map of layer {layer} is not the softmax of its factors")
    project, normalize = (
        model.get_submodule(path)
        for path in (
            site_paths(model, "attention.projection")[layer],
            site_paths(model, "attention.residual")[layer],
        )
    )
    merged = signals["attention.context"][layer].transpose(1, 2).flatten(2)
    if not torch.equal(signals["attention.projection"][layer], project(merged)):
        raise ValueError("layer_parts['attention.projection']: its input is not the context")
    if not torch.equal(signals["attention.output"][layer], normalize(signals["attention.residual"][layer])):
        raise ValueError("output: it does not return what the module of the row residual returns")


def _first_input(model: nn.Module, batch: Batch) -> Tensor:
    """Return what enters the first layer."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
        seen.append(inputs[0] if inputs else keywords["hidden_states"])

    with model.get_submodule(layer_paths(model)[0]).register_forward_pre_hook(keep, with_kwargs=True):
        SignalCapture(model)(batch)
    return seen[0]


def _with_zeros(model: nn.Module, signals: Signals, site: str, reader: str, batch: Batch) -> Signals:
    """Capture `reader` in a pass in which the signal of `site` is 0."""
    zeros = {site: [torch.zeros_like(signal) for signal in signals[site]]}
    with Intervention([site]).apply(model, zeros):
        return SignalCapture(model, [reader])(batch)
