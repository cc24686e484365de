"""A module whose models and losses are machine code, made by torch.compile at the first steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from qat_lightning.training.module import QATModule

GRAPHS = 64
"""That one function may have before torch runs it eagerly: teacher and student, in training and in validation, each under
several interventions and with several lengths, all run the same function of transformers."""


@contextmanager
def compiled(module: QATModule) -> Iterator[None]:
    """Within, both models and the losses run compiled. Afterwards they are what they were, to be watched and exported."""
    models = [model for model in (module.student, module.teacher) if model is not None]
    before = [model._compiled_call_impl for model in models]
    compile_parts(module)
    try:
        with torch._dynamo.config.patch(recompile_limit=GRAPHS):
            yield
    finally:
        del module.weighted
        for model, own in zip(models, before, strict=True):
            model._compiled_call_impl = own  # torch has no word for it


def compile_parts(module: QATModule) -> None:
    """In place. The losses are one graph, so that all terms together read each signal once."""
    for model in (module.student, module.teacher):
        if model is not None:
            model.compile()
    module.weighted = torch.compile(module.weighted)  # type: ignore[method-assign]
