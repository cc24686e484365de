"""Run a model on a batch and return the signals that passed its sites."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qat_lightning.compat import guard_hooks, is_compiled
from qat_lightning.models.calls import by_call, calls
from qat_lightning.models.module_paths import site_paths
from qat_lightning.models.sentence_pooling import head_outputs
from qat_lightning.models.sites import AXES, INPUT_SITES

Batch = Mapping[str, Tensor]
Signals = dict[str, list[Tensor]]
"""Site → one tensor for each layer; "logits" → one for each head of the model: [logits], [start, end] positions, or
[sentence embeddings]."""


class SignalCapture:
    """`SignalCapture(model, sites)(batch)` → Signals.

    Hooks live only while the model runs, so a model can be copied, saved or watched twice. A signal that an
    intervention replaces is returned as the model itself made it. The batch's `labels` never reach the model, and a language
    model keeps no cache of keys and values.

    Raises:
        ValueError: at construction, for a site that the model does not have; for a compiled model that is trained with
            activation checkpointing.
    """

    def __init__(self, model: nn.Module, sites: Iterable[str] = ("logits",)) -> None:
        self.model = model
        self.paths = {site: site_paths(model, site) for site in sites if site != "logits"}
        self.inputs = [name for name in inspect.signature(model.forward).parameters if name != "labels"]
        self.without: dict[str, Any] = {"use_cache": False} if "use_cache" in self.inputs else {}

    def __call__(self, batch: Batch) -> Signals:
        signals: Signals = {site: [] for site in self.paths}
        with ExitStack() as hooks:
            if is_compiled(self.model):
                _refuse_checkpointing(self.model)
                # else a graph compiled under one set of hooks would be run under another
                hooks.enter_context(guard_hooks())
            for site, paths in self.paths.items():
                for path, positions in calls(self.model, paths).items():
                    module = self.model.get_submodule(path)
                    hooks.callback(_watch(module, site, positions, signals[site]).remove)
            output = self.model(**{name: batch[name] for name in self.inputs if name in batch}, **self.without)
        return signals | {"logits": list(head_outputs(self.model, output, batch).values())}


def what_counts(site: str, batch: Batch) -> Tensor | None:
    """Return the mask of tokens that are not padding, broadcastable to the site's signal; None without padding or token axis."""
    mask, axes = batch.get("attention_mask"), AXES[site]
    if mask is None or "N" not in axes:
        return None
    tokens = mask.bool()
    queries = tokens.reshape(tokens.shape[0], *(tokens.shape[1] if axis == "N" else 1 for axis in axes[1:]))
    return queries & tokens[:, None, None, :] if axes.endswith("M") else queries


def _refuse_checkpointing(model: nn.Module) -> None:
    """Refuse to compile a checkpointed layer: the compiled graph would not contain its hooks."""
    if model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise ValueError(
            "the model is compiled and has activation checkpointing, which do not go together: leave out one of them"
            " (a compiled model already computes again what is cheap)"
        )


def _watch(module: nn.Module, site: str, positions: Sequence[int | None], captured: list[Tensor]) -> RemovableHandle:
    """prepend: see the model's own signal, before an intervention puts the teacher's in its place."""

    def keep(module: nn.Module, inputs: Any, output: Any = None) -> None:
        signal = inputs if site in INPUT_SITES else output
        captured.append(signal[0] if isinstance(signal, tuple) else signal)

    hook = by_call(positions, {position: keep for position in positions if position is not None})
    hook.in_second_run = _keep_nothing  # type: ignore[attr-defined]
    if site in INPUT_SITES:
        return module.register_forward_pre_hook(hook, prepend=True)
    return module.register_forward_hook(hook, prepend=True)


def _keep_nothing(module: nn.Module, inputs: Any, output: Any = None) -> None:
    """If activations are computed again (`qat_lightning.quantization.modules.activation_checkpointing`), the signal is
    known; a watched port stays so."""
