"""One step of distillation in plain torch: a batch through teacher, student and losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qat_lightning.compat import compiled_call, recompile_limit, set_compiled_call
from qat_lightning.distillation.intervention import Intervention
from qat_lightning.distillation.losses.base import Loss
from qat_lightning.models.capture import Batch, SignalCapture, Signals
from qat_lightning.models.sites import FACTORS

GRAPHS = 64
"""Compiled graphs of one function before torch runs it eagerly: teacher and student, in training and in validation, under
several interventions and with several lengths, all run the same function of transformers."""


@dataclass(frozen=True)
class StepResult:
    """The loss of a batch with its graph: the sum of the terms, name → loss times its weight, all scalars."""

    loss: Tensor
    terms: dict[str, Tensor]


class DistillationStep:
    """`step(batch)` → StepResult: signals of the teacher, signals of the student under `step.intervention`, the losses.

    Args:
        student: the model in training; its attention must be open where a loss or an intervention reads inside it.
        losses: name → loss. A loss of weight 0 is neither computed nor are its sites captured.
        teacher: is frozen and put in evaluation mode; None for training without distillation.
        interventions: those that `step.intervention` may be set to; the teacher's signals include their sites.

    Attributes:
        intervention: replaces signals of the student; set it to any of `interventions`, or to `Intervention()` for none.
        capture_student, capture_teacher: batch → signals.

    Raises:
        ValueError: an intervention replaces a signal that a loss does not read but computes.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> from qat_lightning.distillation.losses import LogitDistillationLoss
    >>> config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    >>> models = [BertForSequenceClassification(config) for _ in range(2)]
    >>> step = DistillationStep(models[0], {"logits": LogitDistillationLoss()}, teacher=models[1])
    >>> result = step({"input_ids": torch.tensor([[1, 2, 3]])})
    >>> result.loss.backward()
    >>> list(result.terms)
    ['logits']
    """

    def __init__(
        self,
        student: nn.Module,
        losses: Mapping[str, Loss],
        teacher: nn.Module | None = None,
        interventions: Iterable[Intervention] = (),
    ) -> None:
        replaced = {site for intervention in interventions for site in intervention.sites}
        check_visible(replaced, losses)
        self.student, self.teacher, self.intervention = student, teacher, Intervention()
        self.losses = {name: loss for name, loss in losses.items() if loss.weight != 0}
        sites = {site for loss in self.losses.values() for site in loss.sites}
        self.capture_student = SignalCapture(student, sorted(sites))
        self.capture_teacher: Callable[[Batch], Signals] = lambda batch: {}
        if teacher is not None:
            self.capture_teacher = SignalCapture(teacher.requires_grad_(False).eval(), sorted(sites | replaced))

    def __call__(self, batch: Batch) -> StepResult:
        teacher = self.teacher_signals(batch)
        with self.intervention.apply(self.student, teacher):
            student = self.capture_student(batch)
        terms = self.weighted(student, teacher, batch)
        return StepResult(torch.stack(list(terms.values())).sum(), terms)

    @torch.no_grad()
    def teacher_signals(self, batch: Batch) -> Signals:
        """Return the teacher's signals; empty without a teacher."""
        return self.capture_teacher(batch)

    def weighted(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Return the terms whose sum is the loss."""
        return {name: loss.weight * loss(student, teacher, batch) for name, loss in self.losses.items()}

    def compile(self) -> None:
        """Compile both models by torch.compile, and all losses as one graph, so that they read each signal once."""
        for model in self._models():
            model.compile()
        self.weighted = torch.compile(self.weighted)  # type: ignore[method-assign]

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Compile within this context; afterwards models and losses run eagerly again, to be analyzed and exported."""
        before = [compiled_call(model) for model in self._models()]
        self.compile()
        try:
            with recompile_limit(GRAPHS):
                yield
        finally:
            del self.weighted
            for model, call in zip(self._models(), before, strict=True):
                set_compiled_call(model, call)

    def _models(self) -> list[nn.Module]:
        return [model for model in (self.student, self.teacher) if model is not None]


def check_visible(replaced: Iterable[str], losses: Mapping[str, Loss]) -> None:
    """Raise ValueError if the scores are replaced, and a loss computes them from queries and keys."""
    blind = [name for name, loss in losses.items() if loss.weight != 0 and set(FACTORS).intersection(loss.sites)]
    if "attention.scores" in replaced and blind:
        raise ValueError(f"an intervention replaces attention.scores: give losses[{blind[0]!r}] implementation='dense'")
