"""One LightningModule for every method: a batch goes teacher → student → losses → log."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric

from qat_lightning.compat import is_compiled
from qat_lightning.distillation.intervention import Intervention
from qat_lightning.distillation.losses.base import Loss
from qat_lightning.distillation.step import DistillationStep
from qat_lightning.models.capture import Batch, SignalCapture, Signals
from qat_lightning.models.quantized_model import cached_weights, step_sizes
from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from qat_lightning.training.compatibility import check_teacher
from qat_lightning.training.guards.callbacks import FrozenTeacherCheck, NonFiniteCheck
from qat_lightning.training.guards.diagnosis import check_weights
from qat_lightning.training.teacher_cache.cache import TeacherCache

Predict = Callable[[Sequence[Tensor], Batch], tuple[Tensor, Tensor]]
MakeOptimizer = Callable[[Iterable[dict[str, Any]]], Optimizer]


class QATModule(LightningModule):
    """The LightningModule of all stages: QAT without distillation has no teacher, the teacher stage has no quantizers.

    Args:
        student, losses, teacher, interventions: as in `DistillationStep`. The teacher is held outside the module tree, so it is
            in no checkpoint, optimizer or gradient bucket.
        metrics: name → metric, fed what `predict` returns: (logits of each head, batch) → (predictions, targets).
        optimizer: called with the parameter groups.
        lr_scheduler: (step, steps) → factor on the learning rate.
        steps: optimizer steps that this module will be trained for.
        weight_decay: for matrices; biases and normalization get none (arXiv:2009.12812, released code).
        step_size: "weights", "activations" → lr and weight_decay of what their quantizers learn; without, the
            optimizer's own lr and no decay.
        stage: what an error calls this training.
        cache: where the teacher's signals are kept and found again.
        full_teacher: the teacher as it was fine-tuned, for analyses, if `teacher` is a copy of it in another precision.

    Raises:
        ValueError: a teacher that cannot teach this student, an intervention that a loss does not see (`check_visible`).
    """

    def __init__(
        self,
        student: nn.Module,
        losses: Mapping[str, Loss],
        metrics: Mapping[str, Metric],
        predict: Predict,
        optimizer: MakeOptimizer,
        lr_scheduler: Callable[[int, int], float],
        steps: int,
        teacher: nn.Module | None = None,
        interventions: Sequence[Intervention] = (),
        weight_decay: float = 0.01,
        step_size: Mapping[str, Mapping[str, float]] | None = None,
        stage: str = "train",
        cache: TeacherCache | None = None,
        full_teacher: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if teacher is not None:
            check_teacher(teacher, student)
        self.student, self.steps, self.predict, self.weight_decay = student, steps, predict, weight_decay
        self.distillation = DistillationStep(student, losses, teacher, interventions)
        if cache is not None and isinstance(self.distillation.capture_teacher, SignalCapture):
            self.distillation.capture_teacher = cache.wrap(self.distillation.capture_teacher)
        self._full_teacher = [] if full_teacher is None else [full_teacher.requires_grad_(False).eval()]
        self.make_optimizer, self.factor, self.step_size = optimizer, lr_scheduler, step_size or {}
        self.stage = stage
        self.terms: dict[str, Tensor] = {}  # of the last batch
        self.metrics = nn.ModuleDict({
            "val": nn.ModuleDict(copy.deepcopy(dict(metrics))),
            "val_assisted": nn.ModuleDict(copy.deepcopy(dict(metrics))),
        })  # fmt: skip
        self.answer, self._reused_weights = SignalCapture(student), ExitStack()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        result = self.distillation(batch)
        self.terms = {name: term.detach() for name, term in result.terms.items()}
        # sync_dist: the curve is the mean over all processes
        self.log("train/loss", result.loss, prog_bar=True, sync_dist=True)
        self.log_dict({f"train/loss_{name}": term for name, term in result.terms.items()}, sync_dist=True)
        self.log("lr", self.learning_rate)
        return result.loss

    def on_validation_epoch_start(self) -> None:
        self._reused_weights.close()  # of a validation that an error has ended
        self._reused_weights.enter_context(cached_weights(self.student))

    def on_validation_epoch_end(self) -> None:
        self._reused_weights.close()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score the student, and during an intervention the student with the teacher's signals as well."""
        self.score("val", self.answer(batch), batch)
        if (intervention := self.distillation.intervention).sites:
            with intervention.apply(self.student, self.distillation.teacher_signals(batch)):
                self.score("val_assisted", self.answer(batch), batch)

    def score(self, kind: str, signals: Signals, batch: Batch) -> None:
        predictions, targets = self.predict([logits.float() for logits in signals["logits"]], batch)
        for name, metric in self.metrics[kind].items():  # type: ignore[operator]
            metric.update(predictions, targets)
            self.log(f"{kind}/{name}", metric, on_step=False, on_epoch=True, prog_bar=kind == "val")

    def configure_optimizers(self) -> Any:
        steps_of = step_sizes(self.student)
        steps = {id(parameter) for parameters in steps_of.values() for parameter in parameters}
        trained = [p for p in self.student.parameters() if p.requires_grad and id(p) not in steps]
        groups = [
            {"params": [parameter for parameter in trained if parameter.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [parameter for parameter in trained if parameter.dim() <= 1], "weight_decay": 0.0},
        ]
        for kind, parameters in steps_of.items():
            if parameters:
                groups.append({"params": parameters, "weight_decay": 0.0, **self.step_size.get(kind, {})})
        optimizer = self.make_optimizer(groups)
        scheduler = LambdaLR(optimizer, lambda step: self.factor(step, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Drop gradients of 0 during an intervention in a compiled model, so that untrained weights stay bit-identical.

        A compiled graph gives them a gradient of 0, eager mode none; weight decay and momentum would move them.
        """
        if self.distillation.intervention.sites and is_compiled(self.student):
            reached = [parameter for parameter in self.student.parameters() if parameter.grad is not None]
            moved = torch.stack([parameter.grad.any() for parameter in reached]).tolist()  # type: ignore[union-attr]
            for parameter, moves in zip(reached, moved, strict=True):
                if not moves:
                    parameter.grad = None

    def optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        """Take the step and keep every learned step size positive and finite."""
        super().optimizer_step(*arguments, **keywords)
        for quantizer in self.student.modules():
            if isinstance(quantizer, LSQQuantizer):
                quantizer.keep_positive()

    def configure_callbacks(self) -> list[Callback]:
        """Add the guards to any Trainer."""
        present = {type(callback) for callback in self.trainer.callbacks}  # type: ignore[attr-defined]
        return [guard() for guard in (FrozenTeacherCheck, NonFiniteCheck) if guard not in present]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint with weights that are not finite, so that the last good one stays."""
        check_weights(self, self.trainer)

    @property
    def teacher(self) -> nn.Module | None:
        return self.distillation.teacher

    @property
    def full_teacher(self) -> nn.Module | None:
        """Return the teacher in the precision of its fine-tuning."""
        return self._full_teacher[0] if self._full_teacher else self.teacher

    @property
    def learning_rate(self) -> float:
        return float(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]

    def on_fit_start(self) -> None:
        """Put the student in training mode, which neither `from_pretrained` nor Lightning does; the teacher stays as it is."""
        train_unfrozen(self.student)
        if self.teacher is not None:
            self.teacher.to(self.device)


def train_unfrozen(module: nn.Module) -> None:
    """Put `module` in training mode, but leave each part as it is whose parameters are all frozen (`requires_grad=False`).

    `from_pretrained` returns a model in evaluation mode, where dropout is off, step sizes are not measured and activations
    are not checkpointed.

    >>> model = nn.ModuleDict({"encoder": nn.Linear(2, 2).requires_grad_(False), "head": nn.Linear(2, 2)}).eval()
    >>> train_unfrozen(model)
    >>> model["head"].training, model["encoder"].training
    (True, False)
    """
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        return
    module.training = True
    for child in module.children():
        train_unfrozen(child)
