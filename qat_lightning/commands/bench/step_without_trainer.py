"""A run's step without its Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.plugins import Precision
from torch import Tensor, distributed, nn

from qat_lightning.models.capture import Batch
from qat_lightning.training.guards.callbacks import FrozenTeacherCheck, NonFiniteCheck
from qat_lightning.training.module import QATModule

Wrap = Callable[[nn.Module], nn.Module]
"""A module → one that is called in its place."""


class StepOfRun:
    """`step(batch)`: forward, backward, optimizer step, with what hangs on their hooks in Lightning's order.

    Of the Trainer's work its loop, its logging, the move of the batch and the clipping of gradients are left out; and gradients
    are dropped when the step ends, not in the next one behind the forward pass.

    Args:
        callbacks: the run's own; the guards that every module brings are added.
        wrap: put around what computes the loss.
    """

    def __init__(
        self,
        module: QATModule,
        optimizer: Any,
        callbacks: Sequence[Callback],
        precision: Precision,
        wrap: Wrap | None = None,
    ) -> None:
        self.module, self.optimizer, self.precision = module, optimizer, precision
        self.callbacks: list[Any] = [*callbacks, FrozenTeacherCheck(), NonFiniteCheck()]
        self.trainer = _stand_in(optimizer)
        module.log = module.log_dict = _unlogged  # type: ignore[method-assign]
        module.optimizers = lambda *given: optimizer  # type: ignore[method-assign]
        self.called = (wrap or _itself)(_TrainingStep(module))

    def forward(self, batch: Batch) -> Tensor:
        """The loss."""
        with self.precision.forward_context():
            return self.called(batch)

    def __call__(self, batch: Batch) -> None:
        module = self.module
        self._each("on_train_batch_start", batch, 0)
        loss = self.forward(batch)
        self._each("on_before_backward", loss)
        loss.backward()
        self._each("on_before_optimizer_step", self.optimizer)
        module.on_before_optimizer_step(self.optimizer)
        module.optimizer_step(0, 0, self.optimizer)
        self.optimizer.zero_grad()
        module.terms = {}  # so that nothing of this step lives on

    def _each(self, hook: str, *given: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self.trainer, self.module, *given)


class _TrainingStep(nn.Module):
    """A module's training step as its forward pass."""

    def __init__(self, module: QATModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Tensor:
        return self.module.training_step(batch, 0)


def _stand_in(optimizer: Any) -> SimpleNamespace:
    """What the callbacks of a run ask a Trainer for, at its first step."""
    several = distributed.is_available() and distributed.is_initialized()
    return SimpleNamespace(
        global_step=0,
        global_rank=distributed.get_rank() if several else 0,
        world_size=distributed.get_world_size() if several else 1,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=0)),
        precision_plugin=None,
        optimizers=[optimizer],
    )


def _unlogged(*given: Any, **named: Any) -> None:
    """The Trainer's part."""


def _itself(module: nn.Module) -> nn.Module:
    return module
