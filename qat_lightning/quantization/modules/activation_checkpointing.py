"""Activation checkpointing: a layer saves its inputs alone and runs again in the backward pass (torch's non-reentrant form).

The second run must equal the first. By then the layer's hooks, which capture signals and insert the teacher's, are removed, so
the first run's hooks are stored and restored during the second run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SECOND_RUN = "in_second_run"
"""The attribute of a hook that holds its replacement for the second run; a hook without it runs again itself."""

HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)  # fmt: skip
"""The attributes of a module that hold its hooks."""

_RUN: ContextVar[int] = ContextVar("run", default=0)
"""1 or 2 in the first or second run of a checkpointed layer, else 0."""

HookTables = Mapping[nn.Module, Mapping[str, Any]]


def in_checkpointed_layer() -> bool:
    """Whether a checkpointed layer is running: nothing of its inside is saved for the backward pass."""
    return _RUN.get() > 0


def checkpoint_layers(layers: Iterable[nn.Module]) -> None:
    """Checkpoint these layers of a transformers model in training mode, in place.

    Outputs and gradients stay the same, bit for bit: dropout draws the same numbers in both runs. ValueError for a layer
    that transformers does not checkpoint.
    """
    for layer in layers:
        if not hasattr(layer, "gradient_checkpointing"):
            raise ValueError(f"activation_checkpointing=true: transformers has none for a {type(layer).__name__}")
        layer.gradient_checkpointing = True  # type: ignore[assignment]
        # Not by transformers' own switch: it accepts no context for each layer, and leaves a hook on the embeddings.
        # A partial, so that a copy of the model refers to its own layers.
        layer._gradient_checkpointing_func = partial(_checkpointed, layer)  # type: ignore[assignment]


def _checkpointed(layer: nn.Module, run: Callable[..., Any], *inputs: Any) -> Any:
    return checkpoint(partial(_run, run), *inputs, use_reentrant=False, context_fn=partial(_contexts, layer))


def _run(run: Callable[..., Any], *inputs: Any) -> Any:
    """In the second run, on aliases of the inputs: a quantized tensor of the first run must not be found again."""
    if _RUN.get() == 2:
        inputs = tuple(value.view_as(value) if isinstance(value, Tensor) else value for value in inputs)
    return run(*inputs)


def _contexts(layer: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of the first and of the second run; each backward pass through the layer enters the second one."""
    return _counted_run(1), _SecondRun({module: _for_second_run(module) for module in layer.modules()})


class _SecondRun(AbstractContextManager[None]):
    """The second run with the stored hooks, a context that can be entered any number of times."""

    def __init__(self, stored: HookTables) -> None:
        self.stored = stored
        self.entered: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        self.entered.append(_second_run(self.stored))
        self.entered[-1].__enter__()

    def __exit__(self, *raised: Any) -> bool | None:
        return self.entered.pop().__exit__(*raised)


@contextmanager
def _counted_run(run: int) -> Iterator[None]:
    before = _RUN.set(run)
    try:
        yield
    finally:
        _RUN.reset(before)


@contextmanager
def _second_run(stored: HookTables) -> Iterator[None]:
    current = {module: {name: vars(module)[name] for name in HOOKS} for module in stored}
    _set_hooks(stored)
    try:
        with _counted_run(2):
            yield
    finally:
        _set_hooks(current)


def _for_second_run(module: nn.Module) -> dict[str, Any]:
    """Copies of the module's tables of hooks, each hook as it runs in the second run."""
    return {
        name: type(table)((key, getattr(hook, SECOND_RUN, hook)) for key, hook in table.items())
        for name, table in ((name, vars(module)[name]) for name in HOOKS)
    }


def _set_hooks(tables: HookTables) -> None:
    for module, hooks in tables.items():
        vars(module).update(hooks)
