"""Count the operations that make the host wait for the device, on any device."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PACKAGE = Path(__file__).parents[3]

WAITING = {
    "aten::_local_scalar_dense",  # item(), float(), bool(), tolist() of one element
    "aten::item",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",  # the device knows the size of the result; the same is true of boolean indices
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::repeat_interleave.Tensor",
    "aten::allclose",
}
"""Operators whose result, or the shape of it, the host must know."""

MOVING = {"aten::_to_copy", "aten::copy_"}
"""Operators that wait when they copy from a device to the host."""


class Synchronizations(TorchDispatchMode):
    """`with Synchronizations() as found: …; found.places` → (operator, file:line) → how often.

    The place is the nearest line outside of torch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = (
            func._schema.name if not func._schema.overload_name else f"{func._schema.name}.{func._schema.overload_name}"
        )
        result = func(*args, **(kwargs or {}))
        boolean_index = func._schema.name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        )
        if (
            boolean_index
            or WAITING & {name, func._schema.name}
            or (func._schema.name in MOVING and _leaves(args, result))
        ):
            self.places[func._schema.name, _place()] += 1
        return result


def _leaves(args: Any, result: Any) -> bool:
    """Return whether a copy goes from a device to the host."""
    source = args[1] if len(args) > 1 and isinstance(args[1], torch.Tensor) else args[0]
    return source.device.type != "cpu" and result.device.type == "cpu"


def _place() -> str:
    torch_folder = str(Path(torch.__file__).parent)
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(torch_folder) and frame.filename != __file__:
            path = Path(frame.filename)
            inside = path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE / "qat_lightning") else path
            return f"{'/'.join(inside.parts[-3:])}:{frame.lineno}"
    return "?"
