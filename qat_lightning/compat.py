"""Private names of other libraries, each with why it is needed and the version in which it was found.

Hydra's are in `config/hydra_settings.py`, since rooms below `config` do not import Hydra.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn
from torch._C._functorch import is_functorch_wrapped_tensor as is_functorch_wrapped_tensor  # torch 2.0: no public test


def is_compiled(model: nn.Module) -> bool:
    """Return whether `model.compile()` was called (torch 2.2: no public flag)."""
    return getattr(model, "_compiled_call_impl", None) is not None


def compiled_call(model: nn.Module) -> Any:
    """Return what `model.compile()` has made, or None (torch 2.2)."""
    return model._compiled_call_impl


def set_compiled_call(model: nn.Module, call: Any) -> None:
    """Undo `model.compile()` by putting back what `compiled_call` returned before (torch 2.2: no public inverse)."""
    model._compiled_call_impl = call


def guard_hooks() -> Any:
    """Within this context, a graph compiled under one set of hooks is not run under another (torch 2.1)."""
    return torch._dynamo.config.patch(skip_nnmodule_hook_guards=False)


def recompile_limit(graphs: int, **options: Any) -> Any:
    """Within this context, one function can have so many compiled graphs (torch 2.5: a private configuration)."""
    return torch._dynamo.config.patch(recompile_limit=graphs, **options)


def attention_implementation(model: nn.Module) -> str | None:
    """Return the name of the attention function of a model (transformers 4.36: a setter is public, a getter is not)."""
    name: str | None = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return name


def without_signal_handlers(trainer: Any) -> Any:
    """Return Lightning's Trainer without its own signal handlers, for which it has no switch (lightning 2.0).

    Its SIGTERM handler ends a run with exit code 0 and without a checkpoint, and communicates with other processes from
    within the handler; its SIGUSR1 handler (SLURM) writes a checkpoint that a later stage would resume from.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None
    return trainer


def observed_processes(thread: threading.Thread) -> list[Any]:
    """Return the list of processes that a thread of Lightning's launcher observes (lightning 2.1)."""
    found = getattr(thread, "_child_processes", None) if thread.name == "child-process-observer" else None
    return found or []


def is_wandb_offline(logger: Any) -> bool:
    """Return whether a WandbLogger was made with offline=True (lightning 2.0)."""
    return bool(logger._offline)


def reopen_wandb(logger: Any) -> None:
    """Make a WandbLogger begin its log again at the next use (lightning 2.0)."""
    logger._experiment = None
