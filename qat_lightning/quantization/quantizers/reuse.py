"""A quantized tensor in a byte an element, and quantized tensors that are asked for again."""

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
    """What a quantized tensor of `shape` and `dtype` is made of; `restored()` is that tensor again, equal in each element (a zero
    loses its sign).

    Args:
        values: int8, or uint8 where no code is negative; one an element, in groups where there are any.
        scale, zero_point: broadcastable to `values`; zero_point None is 0.
        version: the quantized tensor's, when it was made; one that has been written to since is something else.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor | None
    shape: torch.Size
    dtype: torch.dtype
    version: int = 0

    def restored(self) -> Tensor:
        wide = self.values.to(self.scale.dtype)
        if self.zero_point is not None:
            wide.sub_(self.zero_point)
        return wide.mul_(self.scale).reshape(self.shape).to(self.dtype)


def with_codes(quantized: Tensor, codes: Codes | None) -> Tensor:
    """The tensor itself, its codes with it where there are any."""
    if codes is not None:
        quantized.codes = replace(codes, version=quantized._version)  # type: ignore[attr-defined]
    return quantized


_EVALUATION: ContextVar[bool] = ContextVar("evaluation", default=False)


@contextmanager
def evaluation() -> Iterator[None]:
    """Within, and without gradients, an input that several layers read is quantized once as well.

    There it is for the caller to say that no tensor is written to behind torch's back; with gradients the graph says so.
    """
    before = _EVALUATION.set(True)
    try:
        yield
    finally:
        _EVALUATION.reset(before)
        LATEST.forget()


class Latest:
    """The quantized tensor that was made last: query, key and value read one input, one after the other.

    Only one, and only as long as what it was made of lives, so that memory holds nothing for it.
    """

    def __init__(self) -> None:
        # One name, so that threads see all of it or nothing.
        self._last: tuple[weakref.ref[Tensor], object, Tensor, int] | None = None

    def find(self, x: Tensor, settings: object) -> Tensor | None:
        """What a quantizer of these settings has just made of this very tensor, both unchanged since; else None."""
        if self._last is None:
            return None
        of, key, quantized, version = self._last
        same = of() is x and key == _key(x, settings) and quantized._version == version
        return quantized if same else None

    def keep(self, x: Tensor, settings: object, quantized: Tensor) -> None:
        self._last = (weakref.ref(x, self._forget), _key(x, settings), quantized, quantized._version)

    def forget(self) -> None:
        self._last = None

    def _forget(self, of: weakref.ref[Tensor]) -> None:
        if self._last is not None and self._last[0] is of:
            self._last = None


LATEST = Latest()


def may_come_again(x: Tensor) -> bool:
    """Whether what is made of x may be shared: it is the output of an operator in a graph, or a validation's.

    Not a tensor of the user's own or a parameter, which could change without a sign; nor a compiler's, which sees itself
    what comes again.
    """
    if torch.compiler.is_compiling() or isinstance(x, nn.Parameter) or x.is_inference():
        return False
    if torch.is_inference_mode_enabled():
        return False
    return x.grad_fn is not None if torch.is_grad_enabled() else _EVALUATION.get()


def place(x: Tensor) -> tuple[object, ...]:
    """Another one for another tensor, and after each change that torch sees."""
    return x.data_ptr(), x.shape, x.stride(), None if x.is_inference() else x._version


def _key(x: Tensor, settings: object) -> tuple[object, ...]:
    return settings, x._version, x.requires_grad, torch.is_grad_enabled()
