"""Own loss, distance, callback, metric, schedules, optimizer and logger."""

from subprocess import Popen  # noqa: F401 (an alias that configuration must not reach)

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torchmetrics import MeanMetric

SEEN: list[str] = []
"""What the classes of this package did, for the test."""


class CosineLoss:
    """1 − cosine similarity of the last hidden states."""

    sites, needs_teacher = ("hidden",), True

    def __init__(self, weight: float = 1.0) -> None:
        if weight < 0:
            raise ValueError(f"weight={weight} must be 0 or more")
        self.weight = weight

    def __call__(self, student, teacher, batch) -> Tensor:
        SEEN.append("loss")
        return 1 - torch.cosine_similarity(student["hidden"][-1], teacher["hidden"][-1].detach(), dim=-1).mean()


def absolute_error(student: Tensor, teacher: Tensor, counts: Tensor | None) -> Tensor:
    """The mean absolute difference: a distance for FeatureMatchingLoss."""
    SEEN.append("distance")
    return (student - teacher).abs().mean()


class CountSteps(Callback):
    def on_train_batch_end(self, *_) -> None:
        SEEN.append("callback")


class Surprise(MeanMetric):
    """The share of wrong answers."""

    higher_is_better = False

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        super().update((predictions != labels).float())


class Alternating:
    """Two interventions in turn."""

    names = ("output", "map")

    def __call__(self, step: int, steps: int) -> str:
        SEEN.append("intervention schedule")
        return self.names[step % 2]


class Cosine:
    """A learning-rate factor that falls as a cosine."""

    def __call__(self, step: int, steps: int) -> float:
        SEEN.append("lr schedule")
        return float(torch.cos(torch.tensor(1.5 * step / max(1, steps))))


class SignDescent(torch.optim.Optimizer):
    """w ← w − lr · sign(g)."""

    def __init__(self, params, lr: float = 1e-4, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=float(group["lr"]))
        return loss


class CountingLogger(CSVLogger):
    def log_metrics(self, *given, **named) -> None:
        SEEN.append("logger")
        super().log_metrics(*given, **named)


class NotAnything:
    """A class that fits no place."""
