"""Compute the size of a quantized model, and a hash of its tensors."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qat_lightning.models.module_paths import part_kind, part_paths
from qat_lightning.models.packed_state import Packed, packed_tensors, quantized_modules
from qat_lightning.quantization.packing.stored_weight import DivergedError
from qat_lightning.quantization.quantizers.base import Quantizer

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Size:
    """Bytes of a model's parameters in float32, and of the tensors of its packed folder."""

    float32: int
    packed: int

    @property
    def ratio(self) -> float:
        return self.float32 / self.packed


def size(model: nn.Module) -> Size:
    """Compute the bytes of the tensors of a packed folder; unquantized tensors count in float32.

    A learned step of an input, or its calibrated scale, is one of them; it has no part in the float32 model. A table that
    the head reads in full precision as well (tied weights) is there twice, as codes and in float32.

    BERT-base ternary with an embedding scale for each row, without a head: 417.6 MiB → 28.07 MiB, 14.88× (the papers'
    28 MB and 14.9×, arXiv:2009.12812 Table 1).
    """
    try:
        if any(parameter.is_meta for parameter in model.parameters()):
            model = _with_finite_numbers(model)
        return size_of(model, packed_tensors(model))
    except DivergedError:
        return size_of(model, packed_tensors(_with_finite_numbers(model)))


def _with_finite_numbers(model: nn.Module) -> nn.Module:
    """Copy a model to the CPU with finite numbers: weights increase, all others are 1."""
    copied = copy.deepcopy(model).to_empty(device="cpu")
    for buffer in copied.buffers():
        buffer.fill_(1)
    quantizers = [module for module in copied.modules() if isinstance(module, Quantizer)]
    step_sizes = {id(step) for quantizer in quantizers for step in quantizer.parameters()}
    for parameter in copied.parameters():
        ramp = torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape)
        parameter.data = torch.ones_like(parameter) if id(parameter) in step_sizes else ramp.to(parameter.dtype)
    return copied


def size_of(model: nn.Module, packed: Packed) -> Size:
    """Compute the size of a model from its packed tensors."""
    learned = {id(step) for module in model.modules() if isinstance(module, Quantizer) for step in module.parameters()}
    elements = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in learned)
    return Size(
        float32=elements * FLOAT_BYTES,
        packed=sum(tensor.numel() * tensor.element_size() for tensor in packed.tensors.values()),
    )


def bits(model: nn.Module) -> dict[str, int]:
    """Map each kind of part to the width of its weights: {"embeddings.word": 2, "attention.query": 2, …, "head": 32}.

    Layers that agree are folded to one entry; where they differ, each has its own: {"layers.0.attention.query": 8, …}.
    """
    widths = {
        part: int(getattr(getattr(model.get_submodule(path), "weight_quantizer", None), "bits", 32))
        for part, path in part_paths(model).items()
    }
    kinds: dict[str, set[int]] = {}
    for part, width in widths.items():
        kinds.setdefault(part_kind(part), set()).add(width)
    return {part_kind(part) if len(kinds[part_kind(part)]) == 1 else part: width for part, width in widths.items()}


def quantized_weights(model: nn.Module) -> Iterator[tuple[Tensor, Quantizer]]:
    """Yield each quantized weight, as its quantizer receives it, and the quantizer."""
    for _, module, quantizer in quantized_modules(model):
        yield module.quantized_weight, quantizer  # type: ignore[misc]


def tensors_hash(model: nn.Module) -> str:
    """Compute the SHA-256 of names and bytes of the model's tensors, in the order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        # As raw bytes: numpy knows no bfloat16. `reshape` gives the one dimension that a view of another width needs.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
