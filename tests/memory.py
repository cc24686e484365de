"""Counts the bytes that tensors take, exactly, on any machine: by the operations that make them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class Allocations(TorchDispatchMode):
    """`with Allocations() as made:` → of all that is made in it: `made.largest` tensor (elements), `made.peak` bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        for tensor in tree_leaves((arguments, keywords)):
            if isinstance(tensor, Tensor):
                self._known.setdefault(tensor.untyped_storage(), None)  # it was there before
        made = operation(*arguments, **keywords)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self._known:
                self._count(tensor)
        return made

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._known[storage] = None
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        self.largest = max(self.largest, storage.nbytes() // tensor.element_size())
        weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, size: int) -> None:
        self.live -= size


@contextmanager
def saved_bytes() -> Iterator[list[int]]:
    """A list that grows by the bytes of each tensor that autograd keeps for a backward pass; a storage counts once."""
    sizes: list[int] = []
    known: Any = WeakIdKeyDictionary()

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage() not in known:
            known[tensor.untyped_storage()] = None
            sizes.append(tensor.untyped_storage().nbytes())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes
