"""What autograd saves of a quantized tensor: its codes, a byte an element, in place of its floats."""

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
    """Within, what autograd saves of these tensors, or of views of all they hold, are the `codes` that came with them.

    `tensor.codes.restored()` makes the tensor anew in the backward pass, equal in each element. Tensors without codes are
    saved as ever, and so is all of a layer that runs again in the backward pass: it keeps nothing of its inside.
    """
    known = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors if _codes(tensor) is not None}
    if not known or not torch.is_grad_enabled() or in_checkpointed_layer():
        yield
        return

    def pack(saved: Tensor) -> Any:
        whole = known.get(saved.untyped_storage().data_ptr())
        if whole is None or saved.numel() != whole.numel() or saved.dtype != whole.dtype:
            return saved
        return _codes(whole), saved.size(), saved.stride(), saved.storage_offset()

    with saved_tensors_hooks(pack, _unpack):
        yield
    known.clear()  # the graph holds on to `pack`


def as_autocast(x: Tensor) -> Tensor:
    """x in the type in which autocast multiplies, its codes with it: autocast itself would leave them behind."""
    kind = x.device.type
    codes, dtype = _codes(x), torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if codes is None or x.dtype in (dtype, torch.float64):  # which autocast leaves as it is
        return x
    cast = x.to(dtype)
    cast.codes = replace(codes, dtype=dtype, version=cast._version)  # type: ignore[attr-defined]
    return cast


def asked_for(*quantizers: nn.Module) -> None:
    """Codes are made where somebody keeps them."""
    for quantizer in quantizers:
        if hasattr(quantizer, "keep_codes"):
            quantizer.keep_codes = True  # type: ignore[assignment]


def _codes(x: Tensor) -> Any:
    """What came with x, where x is still what was made; within torch.func's transformations tensors have no memory to know by."""
    codes = getattr(x, "codes", None)
    return None if codes is None or codes.version != x._version or is_functorch_wrapped_tensor(x) else codes


def _unpack(packed: Any) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    codes, size, stride, offset = packed
    return codes.restored().as_strided(size, stride, offset)
