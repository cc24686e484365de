"""Tensors in a file of their own, back bit for bit and laid out in memory as they were; damage shows.

One safetensors file: each tensor flat, and in the metadata how it lay (shape, strides) with the SHA-256 of all. The layout
counts: a product of the same numbers in another order of memory may be rounded otherwise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qat_lightning.io.documents import DocumentError, check_size
from qat_lightning.io.files import atomic_write


class DamagedError(ValueError):
    """A file that is not what `write_tensors` wrote."""


def write_tensors(path: Path, tensors: Sequence[Tensor]) -> None:
    """The file is there whole or not at all, also where several processes write it at once.

    Nothing waits for the disk: what a loss of power has cut short does not pass `read_tensors`.
    """
    layouts = [_layout(tensor) for tensor in tensors]
    flat = {
        str(number): _in_a_row(tensor.detach().permute(layout["order"])).cpu()
        for number, (tensor, layout) in enumerate(zip(tensors, layouts, strict=True))
    }
    told = json.dumps(layouts)
    with atomic_write(path, durable=False) as temporary:
        save_file(flat, temporary, {"layout": told, "sha256": _digest(told, flat)})


def read_tensors(path: Path, device: torch.device | str = "cpu") -> list[Tensor]:
    """What was written, in memory of its own.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedError: a bit has changed, the end is missing, or it is no plain file.
    """
    try:
        check_size(path)  # a named pipe would be waited for
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            flat = {str(number): file.get_tensor(str(number)) for number in range(len(file.keys()))}
        if facts.get("sha256") != _digest(facts.get("layout", ""), flat):
            raise DamagedError(f"{path} is damaged: its SHA-256 is another than when it was written")
        layouts = json.loads(facts["layout"])
        return [_laid(flat[str(number)], layout, device) for number, layout in enumerate(layouts)]
    except (DocumentError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from error


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's own bytes, in the order of its elements; a copy only from a device or of what has gaps."""
    return _in_a_row(tensor.detach().cpu()).view(torch.uint8).numpy().data


def _in_a_row(tensor: Tensor) -> Tensor:
    """(size,), where the only element of a tensor may have kept any stride."""
    flat = tensor.contiguous().reshape(-1)
    return flat.as_strided(flat.shape, (1,))


def _layout(tensor: Tensor) -> dict[str, Any]:
    """order: its axes by how far apart their elements lie, so that the flat form is the memory as it is."""
    order = sorted(range(tensor.dim()), key=lambda axis: -tensor.stride()[axis])
    strides = _strides(tensor) if _overlaps(tensor, order) else list(tensor.stride())
    return {"shape": list(tensor.shape), "strides": strides, "order": order}


def _overlaps(tensor: Tensor, order: Sequence[int]) -> bool:
    """Whether two elements share a place, as those of an expanded tensor do; such a layout cannot be written to."""
    extent = 1
    for axis in reversed(order):
        if tensor.shape[axis] > 1:
            if tensor.stride(axis) < extent:
                return True
            extent = tensor.stride(axis) * tensor.shape[axis]
    return False


def _strides(tensor: Tensor) -> list[int]:
    return list(torch.empty(tensor.shape, device="meta").stride())


def _laid(flat: Tensor, layout: Mapping[str, Any], device: torch.device | str) -> Tensor:
    """A tensor of torch's own memory, whose alignment is that of any other: kernels may round by it."""
    made = torch.empty_strided(layout["shape"], layout["strides"], dtype=flat.dtype, device=device)
    ordered = made.permute(layout["order"])
    ordered.copy_(flat.view(ordered.shape))
    return made


def _digest(layout: str, flat: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(layout.encode())
    for number, tensor in sorted(flat.items()):
        digest.update(f"{number} {tensor.dtype} {len(tensor)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()
