"""Training steps as calls: a plain step of transformers' own model, and that of each variant, with the same weights."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision, Precision
from torch import Tensor, distributed, nn

from qat_lightning.commands.bench.measures import Context
from qat_lightning.commands.bench.settings import Shape, random_batch
from qat_lightning.config.builders.models import build_data, build_model, build_quantized
from qat_lightning.config.builders.training import build_callbacks, build_module
from qat_lightning.config.schema import RunConfig, Teacher
from qat_lightning.models.capture import Batch, SignalCapture
from qat_lightning.models.convert import keep_layers
from qat_lightning.models.quantized_model import cached_weights, calibrate
from qat_lightning.training.guards.callbacks import FrozenTeacherCheck, NonFiniteCheck
from qat_lightning.training.module import QATModule

CALIBRATION = 8
"""Rows for calibrating static scales; their content does not affect the time."""
Wrap = Callable[[nn.Module], nn.Module]
"""Returns a module that is called in place of the given one, such as DistributedDataParallel."""


@dataclass(frozen=True)
class Case:
    """The timed operations of one variant."""

    forward: Callable[[], Tensor]  # the loss with its graph
    step: Callable[[], None]  # forward, backward, optimizer step, dropping of gradients
    evaluate: Callable[[], Any]  # the model's outputs as in validation
    evaluation: Context  # that of a validation, in which weights are quantized once
    persistent: Callable[
        [], list[Tensor]
    ]  # what lives from step to step: weights of both models, optimizer state, batch


class CaseBuilder:
    """Builds cases that share the student's weights, the teacher's weights and the optimizer state.

    So many of them fit into memory. They never run at the same time, and gradients live within one step. `plain` is the
    baseline's configuration.
    """

    def __init__(self, plain: RunConfig, shape: Shape, device: torch.device, precision: str) -> None:
        torch.manual_seed(0)
        self.plain, self.shape, self.device = plain, shape, device
        self.precision = Precision() if precision == "32-true" else MixedPrecision("bf16-mixed", device.type)
        self.data = build_data(plain)
        self.model = build_model(plain, self.data).to(device)  # type: ignore[arg-type]
        self.teacher = copy.deepcopy(self.model)
        self.states: defaultdict[type, defaultdict[Tensor, Any]] = defaultdict(lambda: defaultdict(dict))

    def batch(self, shape: Shape | None = None) -> dict[str, Tensor]:
        """Return rows without padding, with random labels."""
        inputs = random_batch(self.model, shape or self.shape)
        generator, rows = torch.Generator().manual_seed(0), len(next(iter(inputs.values())))
        inputs["labels"] = torch.randint(self.data.num_labels, (rows,), generator=generator)
        return {name: value.to(self.device) for name, value in inputs.items()}

    def baseline(self, shape: Shape | None = None, layers: int | None = None, compiled: bool = False,
                 wrap: Wrap | None = None) -> Case:  # fmt: skip
        """Return a plain step of transformers' own model, attention and loss, with the same optimizer."""
        model, batch = self._copy(self.model, layers).train(), self.batch(shape)
        evaluated = _with_same_parameters(model).eval()
        optimizer = self._optimizer(build_module(self.plain, "teacher", 1, model, self.data))
        for one in (model, evaluated) if compiled else ():
            one.compile()
        called = wrap(model) if wrap else model

        def forward() -> Tensor:
            with self.precision.forward_context():
                return called(**batch).loss

        def step() -> None:
            forward().backward()
            optimizer.step()
            optimizer.zero_grad()
            self._synchronize()

        persistent = partial(_persistent, [model], optimizer, batch)
        return Case(forward, step, self._evaluation(evaluated, batch), nullcontext, persistent)

    def variant(self, config: RunConfig, shape: Shape | None = None, layers: int | None = None, compiled: bool = False,
                wrap: Wrap | None = None) -> Case:  # fmt: skip
        """Return a step of a run of `config`, with the callbacks and guards of a run."""
        module, batch = self._module(config, layers), self.batch(shape)
        evaluated = _with_same_parameters(module.student).eval()
        optimizer = self._optimizer(module)
        if compiled:
            module.distillation.compile()
            evaluated.compile()
        step_of_run = StepOfRun(
            module, optimizer, build_callbacks(config, module.stage, self.data), self.precision, wrap
        )

        def step() -> None:
            step_of_run(batch)
            self._synchronize()

        models = [module.student, *([module.teacher] if module.teacher else [])]
        return Case(
            partial(step_of_run.forward, batch),
            step,
            self._evaluation(evaluated, batch),
            partial(cached_weights, evaluated),
            partial(_persistent, models, optimizer, batch),
        )

    def _module(self, config: RunConfig, layers: int | None) -> QATModule:
        student = build_quantized(config, self._copy(self.model, layers)).to(self.device)
        if config.quantization.rules:
            calibrate(student, [self.batch((CALIBRATION, *self.shape[1:]))])
        teacher = None if config.teacher is Teacher.none else self._copy(self.teacher, layers)
        stage = "intervene" if config.intervention else "train"
        return build_module(config, stage, 1, student, self.data, teacher).train().to(self.device)

    def _copy(self, model: nn.Module, layers: int | None) -> nn.Module:
        copied = _with_same_parameters(model)
        return copied if layers is None else keep_layers(copied, range(layers))

    def _optimizer(self, module: QATModule) -> Any:
        optimizer = module.configure_optimizers()["optimizer"]
        optimizer.state = self.states[type(optimizer)]
        return optimizer

    def _evaluation(self, model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], Any]:
        capture = SignalCapture(model)

        def evaluate() -> Any:
            with torch.no_grad(), self.precision.forward_context():
                outputs = capture(batch)
            self._synchronize()
            return outputs

        return evaluate

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class StepOfRun:
    """`step(batch)`: forward, backward and optimizer step, with the callbacks at their hooks in Lightning's order.

    The Trainer's loop and logging, moving the batch to the device and clipping of gradients are not included. Gradients are
    dropped at the end of the step; Lightning drops them in the next one.

    Args:
        callbacks: those of the run; the guards that every module adds come after them.
        wrap: applied to the module that computes the loss.
    """

    def __init__(self, module: QATModule, optimizer: Any, callbacks: Sequence[Callback], precision: Precision,
                 wrap: Wrap | None = None) -> None:  # fmt: skip
        self.module, self.optimizer, self.precision = module, optimizer, precision
        self.callbacks: list[Any] = [*callbacks, FrozenTeacherCheck(), NonFiniteCheck()]
        several = distributed.is_available() and distributed.is_initialized()
        self.trainer = SimpleNamespace(  # the attributes that callbacks read in the first step
            global_step=0,
            global_rank=distributed.get_rank() if several else 0,
            world_size=distributed.get_world_size() if several else 1,
            fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=0)),
            precision_plugin=None,
            optimizers=[optimizer],
        )
        loss = _Loss(module)
        self.called = wrap(loss) if wrap else loss

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss."""
        with self.precision.forward_context():
            return self.called(batch)

    def __call__(self, batch: Batch) -> None:
        self._call_hooks("on_train_batch_start", batch, 0)
        loss = self.forward(batch)
        self._call_hooks("on_before_backward", loss)
        loss.backward()
        self._call_hooks("on_before_optimizer_step", self.optimizer)
        self.module.on_before_optimizer_step(self.optimizer)
        self.module.optimizer_step(0, 0, self.optimizer)
        self.optimizer.zero_grad()
        self.module.terms = {}  # releases the tensors of this step

    def _call_hooks(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self.trainer, self.module, *arguments)


class _Loss(nn.Module):
    """The loss of a module's distillation step as a forward pass, which DistributedDataParallel needs."""

    def __init__(self, module: QATModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Tensor:
        result = self.module.distillation(batch)
        self.module.terms = {name: term.detach() for name, term in result.terms.items()}
        return result.loss


def _with_same_parameters(model: nn.Module) -> nn.Module:
    """Return a copy of the modules with the same parameter objects."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def _persistent(models: Sequence[nn.Module], optimizer: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    weights = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = [value for parameter in parameters for value in optimizer.state.get(parameter, {}).values()]
    return [*weights, *filter(torch.is_tensor, state), *batch.values()]
