"""Operations on a quantized model: calibrate, cache weights, switch quantizers off, find learned step sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from qat_lightning.models.capture import Batch, SignalCapture
from qat_lightning.models.module_paths import attention_paths, part_paths
from qat_lightning.models.size import quantized_weights
from qat_lightning.quantization.modules.attention import InstrumentedAttention
from qat_lightning.quantization.quantizers.base import Quantizer
from qat_lightning.quantization.quantizers.reuse import evaluation


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Calibrate each quantizer on its weight, or on its inputs for these batches, in evaluation mode."""
    observe = SignalCapture(model)
    with ExitStack() as hooks:
        hooks.callback(model.train, model.training)
        model.eval()
        for weight, quantizer in quantized_weights(model):
            quantizer.calibrate(weight)
        weights = {quantizer for _, quantizer in quantized_weights(model)}
        for module in model.modules():
            if isinstance(module, Quantizer) and module not in weights:
                hooks.callback(module.register_forward_pre_hook(_show).remove)
        for batch in batches:
            observe(batch)


@contextmanager
def cached_weights(model: nn.Module) -> Iterator[None]:
    """Within the context, for evaluation, each weight is quantized once, and so is an input that several layers read.

    A weight that changes is quantized again.
    """
    quantized = (
        module for module in model.modules() if isinstance(getattr(module, "weight_quantizer", None), Quantizer)
    )
    layers = [layer for layer in quantized if not getattr(layer, "by_rows", False)]
    try:
        for layer in layers:
            layer.weight_quantizer.cache(layer.quantized_weight)  # type: ignore[operator, union-attr]
        with evaluation():
            yield
    finally:
        for layer in layers:
            layer.weight_quantizer.clear_cache()  # type: ignore[operator, union-attr]


def switch_on(model: nn.Module, parts: Sequence[str] | None = None) -> None:
    """Enable the quantizers of these parts and disable all others; None enables all.

    Part-wise quantization of Teacher Intervention's first step, "either FFN or SA-PROP" (arXiv:2302.11812 §4).

    Args:
        parts: globs over part names, to which the operands of the attention products belong too:
            `layers.*.feedforward.*`; `layers.*.attention.value`, `layers.*.attention.probs`.

    Raises:
        ValueError: a glob that names no quantizer.
    """
    quantizers = list(_by_part(model))
    for glob in parts or ():
        if not any(fnmatchcase(part, glob) for part, *_ in quantizers):
            named = ", ".join(dict.fromkeys(part for part, *_ in quantizers if not part.startswith("layers.")))
            raise ValueError(f"no quantizer in parts {glob!r}: try layers.*, layers.*.feedforward.*, {named}")
    for part, _, quantizer in quantizers:
        quantizer.enabled = parts is None or any(fnmatchcase(part, glob) for glob in parts)


def step_sizes(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the learned parameters of the quantizers of "weights" and of "activations"."""
    found: dict[str, list[nn.Parameter]] = {"weights": [], "activations": []}
    weights = {quantizer for _, quantizer in quantized_weights(model)}
    for module in model.modules():
        if isinstance(module, Quantizer):
            found["weights" if module in weights else "activations"] += module.parameters()
    return found


@torch.no_grad()
def mean_step_sizes(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """ "weights", "activations" → layer ("layers.0", …), "embeddings" or "pooler" → geometric mean of what is learned there."""
    logarithms: dict[str, dict[str, list[Tensor]]] = {"weights": {}, "activations": {}}
    for part, tensor, quantizer in _by_part(model):
        pieces = part.split(".")
        place = ".".join(pieces[:2]) if pieces[0] == "layers" else pieces[0]
        kind = logarithms["weights" if tensor == "weights" else "activations"]
        kind.setdefault(place, []).extend(learned.log().mean() for learned in quantizer.parameters())
    return {
        kind: {place: torch.stack(values).mean().exp() for place, values in places.items() if values}
        for kind, places in logarithms.items()
    }


def _by_part(model: nn.Module) -> Iterator[tuple[str, str, Quantizer]]:
    """Yield part, quantized tensor ("weights", "inputs", "attention") and quantizer."""
    for part, path in part_paths(model).items():
        for slot, tensor in (("weight_quantizer", "weights"), ("input_quantizer", "inputs")):
            if isinstance(quantizer := getattr(model.get_submodule(path), slot, None), Quantizer):
                yield part, tensor, quantizer
    for layer, path in enumerate(attention_paths(model)):
        core = getattr(model.get_submodule(path), "core", None)
        for slot in InstrumentedAttention.QUANTIZED if core is not None else ():
            if isinstance(quantizer := getattr(core, f"{slot}_quantizer"), Quantizer):
                yield f"layers.{layer}.attention.{slot}", "attention", quantizer


def _show(quantizer: Any, inputs: tuple[Tensor, ...]) -> None:
    quantizer.calibrate(inputs[0])
