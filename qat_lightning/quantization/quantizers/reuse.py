"""Quantized tensors as codes of one byte, and the reuse of a tensor that was quantized just before."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Codes:
    """A quantized tensor in bytes; `restored()` returns the tensor, equal in each element (a zero loses its sign)."""

    values: Tensor  # int8, or uint8 if no code is negative; with groups (…, groups, group_size)
    scale: Tensor  # broadcastable to the values, as is the zero point
    zero_point: Tensor | None  # None is 0
    shape: torch.Size
    dtype: torch.dtype
    version: int = 0  # torch's counter of the quantized tensor's changes in place

    def restored(self) -> Tensor:
        values = self.values.to(self.scale.dtype)
        if self.zero_point is not None:
            values.sub_(self.zero_point)
        return values.mul_(self.scale).reshape(self.shape).to(self.dtype)


def attach_codes(quantized: Tensor, codes: Codes | None) -> Tensor:
    """Return the tensor with its codes as the attribute `codes`, if there are any."""
    if codes is not None:
        quantized.codes = replace(codes, version=quantized._version)  # type: ignore[attr-defined]
    return quantized


_EVALUATION: ContextVar[bool] = ContextVar("evaluation", default=False)


@contextmanager
def evaluation() -> Iterator[None]:
    """Within the context and without gradients, an input that several layers read is quantized once.

    The caller guarantees that no tensor is changed in a way that torch does not count; with gradients the graph guarantees it.
    """
    before = _EVALUATION.set(True)
    try:
        yield
    finally:
        _EVALUATION.reset(before)
        LATEST.clear()


class LatestQuantized:
    """The tensor that was quantized last: query, key and value read one input, one after the other.

    One tensor only, and only as long as its input lives, so no memory is held for it.
    """

    def __init__(self) -> None:
        # One attribute, so that another thread sees all of it or nothing.
        self._latest: tuple[weakref.ref[Tensor], object, Tensor, int] | None = None

    def find(self, x: Tensor, settings: object) -> Tensor | None:
        """Return x as quantized by a quantizer of these settings, if that was the last one and both are unchanged."""
        if self._latest is None:
            return None
        source, key, quantized, version = self._latest
        found = source() is x and key == _key(x, settings) and quantized._version == version
        return quantized if found else None

    def store(self, x: Tensor, settings: object, quantized: Tensor) -> None:
        self._latest = (weakref.ref(x, self._forget), _key(x, settings), quantized, quantized._version)

    def clear(self) -> None:
        self._latest = None

    def _forget(self, source: weakref.ref[Tensor]) -> None:
        if self._latest is not None and self._latest[0] is source:
            self._latest = None


LATEST = LatestQuantized()


def is_shareable(x: Tensor) -> bool:
    """Whether x as quantized may be reused: x is the output of an operator in a graph, or an input of a validation.

    Neither a user's tensor nor a parameter, which could change unseen; nor under a compiler, which finds repetitions itself.
    """
    if torch.compiler.is_compiling() or isinstance(x, nn.Parameter) or x.is_inference():
        return False
    if torch.is_inference_mode_enabled():
        return False
    return x.grad_fn is not None if torch.is_grad_enabled() else _EVALUATION.get()


def memory_key(x: Tensor) -> tuple[object, ...]:
    """A key that differs between tensors, and after each change that torch counts."""
    return x.data_ptr(), x.shape, x.stride(), None if x.is_inference() else x._version


def _key(x: Tensor, settings: object) -> tuple[object, ...]:
    return settings, x._version, x.requires_grad, torch.is_grad_enabled()
