"""Layers that keep their inputs alone and run again in the backward pass: torch's non-reentrant activation checkpointing.

A layer that runs again must run as it did. Its hooks, which watch signals and put the teacher's in place, are gone by then,
so they are remembered with the layer's inputs and put back while it runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

FIRST_ALONE = "in_recomputation"
"""The attribute of a hook that says what stands in its place when the layer runs again; without it the hook itself does."""

HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)  # fmt: skip
HOW_IT_RUNS = (*HOOKS, "forward")
"""The attributes of a module itself that say how it runs; a `forward` of its own stands before that of its class."""

_RUN: ContextVar[int] = ContextVar("run", default=0)
"""The run of a checkpointed layer that is at work: the first, the second; 0 outside."""

States = Mapping[nn.Module, Mapping[str, Any]]


def recomputed() -> bool:
    """Whether a layer runs, for the first or the second time, that keeps nothing of its inside for the backward pass."""
    return _RUN.get() > 0


def checkpoint_layers(layers: Iterable[nn.Module]) -> None:
    """From now on these layers, of a transformers model, run again in the backward pass; in training mode alone. In place.

    Their numbers and gradients stay the same, bit for bit: dropout draws as it drew the first time.

    Raises:
        ValueError: a layer that transformers does not checkpoint.
    """
    for layer in layers:
        if not hasattr(layer, "gradient_checkpointing"):
            raise ValueError(
                f"activation_checkpointing=true, and transformers has no checkpointing for a {type(layer).__name__}: give"
                " activation_checkpointing=false and a smaller data.batch_size with trainer.accumulate_grad_batches"
            )
        layer.gradient_checkpointing = True  # type: ignore[assignment]
        # Not transformers' own switch, which does the same: it has no place for a context of each layer, and leaves a
        # hook on the embeddings. A partial, so that a copy of the model speaks of its own layers.
        layer._gradient_checkpointing_func = partial(_checkpointed, layer)  # type: ignore[assignment]


def _checkpointed(layer: nn.Module, run: Callable[..., Any], *inputs: Any) -> Any:
    return checkpoint(partial(_run, run), *inputs, use_reentrant=False, context_fn=partial(_contexts, layer))


def _run(run: Callable[..., Any], *inputs: Any) -> Any:
    """The second run on aliases: what a quantizer has made of a tensor in the first one is not taken for its own."""
    if _RUN.get() == 2:
        inputs = tuple(given.view_as(given) if isinstance(given, Tensor) else given for given in inputs)
    return run(*inputs)


def _contexts(layer: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the first run, and of the second, which each backward pass through the layer makes anew."""
    states = {module: _remembered(module) for module in layer.modules()}
    return _told(1), _Again(partial(_as_then, states))


class _Again(AbstractContextManager[None]):
    """A context that can be entered any number of times."""

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self.make = make
        self.entered: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        context = self.make()
        context.__enter__()
        self.entered.append(context)

    def __exit__(self, *raised: Any) -> bool | None:
        return self.entered.pop().__exit__(*raised)


@contextmanager
def _told(run: int) -> Iterator[None]:
    before = _RUN.set(run)
    try:
        yield
    finally:
        _RUN.reset(before)


@contextmanager
def _as_then(states: States) -> Iterator[None]:
    now = {module: _state(module) for module in states}
    _put(states)
    try:
        with _told(2):
            yield
    finally:
        _put(now)


def _state(module: nn.Module) -> dict[str, Any]:
    return {name: vars(module)[name] for name in HOW_IT_RUNS if name in vars(module)}


def _remembered(module: nn.Module) -> dict[str, Any]:
    """The state in tables of its own, each hook as it is to be in the second run."""
    state = _state(module)
    for name in HOOKS:
        table = state[name]
        state[name] = type(table)((key, getattr(hook, FIRST_ALONE, hook)) for key, hook in table.items())
    return state


def _put(states: States) -> None:
    for module, state in states.items():
        vars(module).pop("forward", None)
        vars(module).update(state)
