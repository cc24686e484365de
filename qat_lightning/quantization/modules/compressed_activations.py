"""Let autograd save the codes of a quantized tensor, one byte an element, instead of its floats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from qat_lightning.compat import is_functorch_wrapped_tensor
from qat_lightning.quantization.modules.activation_checkpointing import in_checkpointed_layer


@contextmanager
def saved_as_codes(*tensors: Tensor) -> Iterator[None]:
    """Within the context, autograd saves the `codes` of these tensors, or of views of all their elements.

    `tensor.codes.restored()` computes the tensor in the backward pass, equal in each element. Tensors without codes are saved
    as usual, and so are those of a checkpointed layer, which saves nothing of its inside.
    """
    known = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors if _codes(tensor) is not None}
    if not known or not torch.is_grad_enabled() or in_checkpointed_layer():
        yield
        return

    def pack(saved: Tensor) -> Any:
        source = known.get(saved.untyped_storage().data_ptr())
        if source is None or saved.numel() != source.numel() or saved.dtype != source.dtype:
            return saved
        return _codes(source), saved.size(), saved.stride(), saved.storage_offset()

    with saved_tensors_hooks(pack, _unpack):
        yield
    known.clear()  # the graph refers to `pack`


def as_autocast(x: Tensor) -> Tensor:
    """x in the type in which autocast multiplies, with its codes, which autocast itself would lose."""
    kind = x.device.type
    codes, dtype = _codes(x), torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if codes is None or x.dtype in (dtype, torch.float64):  # which autocast leaves as it is
        return x
    cast = x.to(dtype)
    cast.codes = replace(codes, dtype=dtype, version=cast._version)  # type: ignore[attr-defined]
    return cast


def keep_codes_of(*quantizers: nn.Module) -> None:
    """Let these quantizers make codes in bytes, which a layer saves."""
    for quantizer in quantizers:
        if hasattr(quantizer, "keep_codes"):
            quantizer.keep_codes = True  # type: ignore[assignment]


def _codes(x: Tensor) -> Any:
    """The codes of x if x is unchanged; within torch.func's transformations tensors have no memory to identify them."""
    codes = getattr(x, "codes", None)
    return None if codes is None or codes.version != x._version or is_functorch_wrapped_tensor(x) else codes


def _unpack(packed: Any) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    codes, size, stride, offset = packed
    return codes.restored().as_strided(size, stride, offset)
