"""Write tensors to a file and read them back with the same bits and memory layout; damage is detected.

The file is a safetensors file: each tensor flat, in the order of its memory, and in the metadata its layout (shape, strides)
and the SHA-256 of all. The layout matters because a kernel may round differently for another layout of the same numbers.
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
    """A file that differs from what `write_tensors` wrote."""


def write_tensors(path: Path, tensors: Sequence[Tensor]) -> None:
    """Write the tensors atomically; several processes may write the same file at once.

    The file is not flushed to the disk: `read_tensors` detects what a loss of power has cut off.
    """
    layouts = [_layout(tensor) for tensor in tensors]
    flat = {
        str(number): _flatten(tensor.detach().permute(layout["order"])).cpu()
        for number, (tensor, layout) in enumerate(zip(tensors, layouts, strict=True))
    }
    described = json.dumps(layouts)
    with atomic_write(path, durable=False) as temporary:
        save_file(flat, temporary, {"layout": described, "sha256": _checksum(described, flat)})


def read_tensors(path: Path, device: torch.device | str = "cpu") -> list[Tensor]:
    """Read the tensors that `write_tensors` wrote.

    Raises:
        FileNotFoundError: the file does not exist.
        DamagedError: a bit has changed, the end is missing, or the file is not a regular file.
    """
    try:
        check_size(path)  # refuses a named pipe, which would block
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            flat = {str(number): file.get_tensor(str(number)) for number in range(len(file.keys()))}
        if metadata.get("sha256") != _checksum(metadata.get("layout", ""), flat):
            raise DamagedError(f"{path} is damaged: its SHA-256 differs from the recorded one")
        layouts = json.loads(metadata["layout"])
        return [_restore(flat[str(number)], layout, device) for number, layout in enumerate(layouts)]
    except (DocumentError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from error


def bytes_of(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes in the order of its elements; copied only from a device or from memory with gaps."""
    return _flatten(tensor.detach().cpu()).view(torch.uint8).numpy().data


def _flatten(tensor: Tensor) -> Tensor:
    """Return shape (size,) with stride 1; a tensor of one element may have any stride."""
    flat = tensor.contiguous().reshape(-1)
    return flat.as_strided(flat.shape, (1,))


def _layout(tensor: Tensor) -> dict[str, Any]:
    """Return shape and strides, and as `order` the axes from the largest stride to the smallest.

    An expanded tensor, whose elements share memory, gets the strides of a new one.
    """
    order = sorted(range(tensor.dim()), key=lambda axis: -tensor.stride()[axis])
    expanded = any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    strides = torch.empty(tensor.shape, device="meta").stride() if expanded else tensor.stride()
    return {"shape": list(tensor.shape), "strides": list(strides), "order": order}


def _restore(flat: Tensor, layout: Mapping[str, Any], device: torch.device | str) -> Tensor:
    """Return a tensor in newly allocated memory, whose alignment is torch's usual one: kernels may round by it."""
    tensor = torch.empty_strided(layout["shape"], layout["strides"], dtype=flat.dtype, device=device)
    ordered = tensor.permute(layout["order"])
    ordered.copy_(flat.view(ordered.shape))
    return tensor


def _checksum(layout: str, flat: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(layout.encode())
    for number, tensor in sorted(flat.items()):
        digest.update(f"{number} {tensor.dtype} {len(tensor)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()
