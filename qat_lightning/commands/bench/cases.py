"""One optimizer step of a run, as a call: of transformers' own model, and of every variant, over the same weights."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch.plugins import MixedPrecision, Precision
from torch import Tensor, nn

from qat_lightning.commands.bench.shapes import Shape, random_batch
from qat_lightning.commands.bench.step_without_trainer import StepOfRun, Wrap
from qat_lightning.commands.bench.timing import Around
from qat_lightning.config.builders.models import build_data, build_model, build_quantized
from qat_lightning.config.builders.training import build_callbacks, build_module
from qat_lightning.config.schema import RunConfig, Teacher
from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.convert import keep_layers
from qat_lightning.models.quantized_model import calibrate, weights_held
from qat_lightning.training.module import QATModule

CALIBRATION = 8
"""Rows that static scales are measured on; which they are has no part in the time."""


@dataclass(frozen=True)
class Case:
    """What can be timed.

    Args:
        forward: → the loss, with its graph.
        step: forward, backward, optimizer step, gradients dropped.
        evaluate: the model's answers, as in validation.
        evaluating: what a validation does before its first batch, and undoes after its last: weights are quantized once.
        kept: the tensors that live from step to step: weights of both models, the optimizer's state, the batch.
    """

    forward: Callable[[], Tensor]
    step: Callable[[], None]
    evaluate: Callable[[], Any]
    evaluating: Around
    kept: Callable[[], list[Tensor]]


class Workshop:
    """Makes cases that all share one set of student's weights, one of teacher's, and one optimizer state.

    So many of them fit into memory side by side. They never run at the same time, and gradients live within a step.

    Args:
        plain: the baseline's configuration.
        precision: "32-true" or "bf16-mixed", as Lightning's.
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
        """Full rows with random labels."""
        made = random_batch(self.model, shape or self.shape)
        draw = torch.Generator().manual_seed(0)
        labels = torch.randint(self.data.num_labels, (len(next(iter(made.values()))),), generator=draw)
        return {name: value.to(self.device) for name, value in (made | {"labels": labels}).items()}

    def baseline(self, shape: Shape | None = None, layers: int | None = None, compiled: bool = False,
                  wrap: Wrap | None = None) -> Case:  # fmt: skip
        """A plain step of transformers' own model, its attention and its loss, with the same optimizer."""
        model, batch = self._copy(self.model, layers).train(), self.batch(shape)
        evaluated = _sharing(model).eval()
        optimizer = self._optimizer(build_module(self.plain, "teacher", 1, model, self.data))
        _compile(compiled, model, evaluated)
        called = wrap(model) if wrap else model

        def forward() -> Tensor:
            with self.precision.forward_context():
                return called(**batch).loss

        def step() -> None:
            forward().backward()
            optimizer.step()
            optimizer.zero_grad()
            self._wait()

        kept = partial(_kept, model, None, optimizer, batch)
        return Case(forward, step, self._evaluation(evaluated, batch), nullcontext, kept)

    def variant(self, config: RunConfig, shape: Shape | None = None, layers: int | None = None, compiled: bool = False,
                wrap: Wrap | None = None) -> Case:  # fmt: skip
        """A step as a run of `config` makes it, with the callbacks and guards that a run has."""
        module, batch = self._module(config, layers), self.batch(shape)
        student, teacher, evaluated = module.student, module.teacher, _sharing(module.student).eval()
        optimizer = self._optimizer(module)
        if compiled:
            module.distillation.compile()
        _compile(compiled, evaluated)
        callbacks = build_callbacks(config, module.stage, self.data)
        of_run = StepOfRun(module, optimizer, callbacks, self.precision, wrap)

        def step() -> None:
            of_run(batch)
            self._wait()

        return Case(
            partial(of_run.forward, batch),
            step,
            self._evaluation(evaluated, batch),
            partial(weights_held, evaluated),
            partial(_kept, student, teacher, optimizer, batch),
        )

    def _module(self, config: RunConfig, layers: int | None) -> QATModule:
        student = build_quantized(config, self._copy(self.model, layers)).to(self.device)
        if config.quantization.rules:
            calibrate(student, [self.batch((CALIBRATION, *self.shape[1:]))])
        teacher = None if config.teacher is Teacher.none else self._copy(self.teacher, layers)
        stage = "intervene" if config.intervention else "train"
        return build_module(config, stage, 1, student, self.data, teacher).train().to(self.device)

    def _copy(self, model: nn.Module, layers: int | None) -> nn.Module:
        made = _sharing(model)
        return made if layers is None else keep_layers(made, range(layers))

    def _optimizer(self, module: QATModule) -> Any:
        optimizer = module.configure_optimizers()["optimizer"]
        optimizer.state = self.states[type(optimizer)]
        return optimizer

    def _evaluation(self, model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], Any]:
        answer = SignalCapture(model)

        def evaluate() -> Any:
            with torch.no_grad(), self.precision.forward_context():
                found = answer(batch)
            self._wait()
            return found

        return evaluate

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _sharing(model: nn.Module) -> nn.Module:
    """A copy of the modules over the very same parameters."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def _compile(compiled: bool, *models: nn.Module) -> None:
    for model in models if compiled else ():
        model.compile()


def _kept(student: nn.Module, teacher: nn.Module | None, optimizer: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    return [*_tensors([student, *([teacher] if teacher else [])]), *_state(optimizer), *batch.values()]


def _tensors(models: Iterable[nn.Module]) -> Iterator[Tensor]:
    for model in models:
        yield from model.parameters()
        yield from model.buffers()


def _state(optimizer: Any) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield from (value for value in optimizer.state.get(parameter, {}).values() if isinstance(value, Tensor))
