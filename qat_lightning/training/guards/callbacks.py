"""Callbacks that end a run when a number is not finite or the teacher changes.

`QATModule` adds them to every Trainer. Its constructor checks the two models (`check_teacher`), and
`qat_lightning.commands.train.preflight` checks models and data together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from qat_lightning.io.external_errors import another_folder
from qat_lightning.training.guards.diagnosis import GuardedModule, NonFiniteError, Seen, check_weights, explain, largest


class FrozenTeacherCheck(Callback):
    """Checks that the teacher is in evaluation mode and the same, bit for bit, from the start of a stage to its end.

    It is compared before each checkpoint as well, and on resume with the teacher that the checkpoint was made with.

    Raises:
        ValueError: a changed teacher, or one in training mode.
    """

    def __init__(self) -> None:
        self.before: dict[str, str] = {}
        self.saved: str | None = None  # fingerprint in the checkpoint that the stage resumes from

    def state_dict(self) -> dict[str, Any]:
        return {"teacher": _joined(self.before)} if self.before else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.saved = state.get("teacher")

    def on_fit_start(self, trainer: Trainer, module: GuardedModule) -> None:  # type: ignore[override]
        self.before = {} if module.distillation.teacher is None else _fingerprints(module.distillation.teacher)
        if self.saved is not None and self.before and self.saved != _joined(self.before):
            raise ValueError(
                f"stage {module.stage}: its checkpoint was made with another teacher: give that one, or"
                f" {another_folder()} to start again"
            )

    def on_train_batch_start(self, trainer: Trainer, module: GuardedModule, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        teacher = module.distillation.teacher
        training = [name for name, part in teacher.named_modules() if part.training] if teacher else []
        if (name := next(iter(training), None)) is not None:
            raise ValueError(
                f"the teacher is in training mode ({name or 'all of it'}), so its dropout would teach noise: call"
                " teacher.eval()"
            )

    def on_save_checkpoint(self, trainer: Trainer, module: GuardedModule, checkpoint: Any) -> None:  # type: ignore[override]
        self._check(module)

    def on_train_end(self, trainer: Trainer, module: GuardedModule) -> None:  # type: ignore[override]
        self._check(module)

    def _check(self, module: GuardedModule) -> None:
        after = {} if module.distillation.teacher is None else _fingerprints(module.distillation.teacher)
        names = [*self.before, *(name for name in after if name not in self.before)]
        changed = [name for name in names if after.get(name) != self.before.get(name)] if self.before else []
        if changed:
            raise ValueError(
                f"stage {module.stage} has changed its teacher, which must stay as it is: {changed[0]} first, {len(changed)}"
                f" of {len(names)} tensors in all; look for a callback that writes to it, or for weights that it shares"
                " with the student, and hand over a copy.deepcopy"
            )


class NonFiniteCheck(Callback):
    """Ends a run at the first step whose loss or gradient is not finite, before it changes the weights.

    If gradients are scaled (16-mixed), infinite gradients are normal, since the scaler skips such a step; only the loss is
    checked. All processes end at the same step. The host waits for the answer of each step, except on CUDA with a fused
    optimizer: its kernel skips that step and all after it, and the answer is read when it has arrived, one or two steps
    later, and before any checkpoint is written.

    Raises:
        NonFiniteError: with step, terms, layer and rows (`diagnosis.explain`).
    """

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.answers: list[_Answer] = []
        self.stopped: Tensor | None = None

    def on_train_batch_start(self, trainer: Trainer, module: GuardedModule, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        while self.answers and self.answers[0].arrived():
            self._hear(trainer, module)
        # after a callback that seeds each batch, initial_seed reproduces the dropout
        self.seen.append(Seen(batch, torch.initial_seed(), module.distillation.intervention))

    def on_before_backward(self, trainer: Trainer, module: GuardedModule, loss: Tensor) -> None:  # type: ignore[override]
        self.seen[-1].terms = module.terms  # and not `loss`, which is scaled

    def on_before_optimizer_step(self, trainer: Trainer, module: GuardedModule, optimizer: Optimizer) -> None:  # type: ignore[override]
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        bad, step = _agreed(self._bad(module, gradients=not scaled), trainer), trainer.global_step + 1
        seen, self.seen = self.seen, []
        if scaled or not _leaves_out_by_itself(optimizer):
            self.answers.append(_Answer(step, seen, bad, lambda: True))
            self._hear(trainer, module)
            return
        self.stopped = bad if self.stopped is None else self.stopped | bad
        optimizer.found_inf = self.stopped.float()  # type: ignore[attr-defined]
        self.answers.append(_Answer(step, seen, *_on_its_way(self.stopped)))

    def on_save_checkpoint(self, trainer: Trainer, module: GuardedModule, checkpoint: Any) -> None:  # type: ignore[override]
        self._hear_all(trainer, module)

    def on_train_end(self, trainer: Trainer, module: GuardedModule) -> None:  # type: ignore[override]
        self._hear_all(trainer, module)
        check_weights(module, trainer)
        for optimizer in trainer.optimizers:
            if self.stopped is not None:
                del optimizer.found_inf  # type: ignore[attr-defined]
        self.stopped, self.seen = None, []

    def _bad(self, module: GuardedModule, gradients: bool) -> Tensor:
        """Tell, on the device, whether this process has found a non-finite number in this step."""
        totals = [torch.stack(list(one.terms.values())).sum() for one in self.seen if one.terms]
        found = [parameter.grad for parameter in module.distillation.student.parameters() if parameter.grad is not None]
        if gradients and found:
            totals.append(largest(found))
        return ~torch.stack([total.float() for total in totals]).isfinite().all() if totals else torch.tensor(False)

    def _hear_all(self, trainer: Trainer, module: GuardedModule) -> None:
        while self.answers:
            self._hear(trainer, module)

    def _hear(self, trainer: Trainer, module: GuardedModule) -> None:
        answer = self.answers.pop(0)
        if answer.bad():
            self.answers = []
            raise NonFiniteError(explain(trainer, module, answer.step, answer.seen))


@dataclass
class _Answer:
    """Tell whether a step was bad; the answer may still be on its way from the device."""

    step: int
    seen: Sequence[Seen]
    flag: Tensor
    arrived: Callable[[], bool]

    def bad(self) -> bool:
        while not self.arrived():
            torch.cuda.current_stream().synchronize()
        return bool(self.flag)


def _fingerprints(model: nn.Module) -> dict[str, str]:
    """Name → SHA-256 of each tensor of a model's state."""
    return {
        name: hashlib.sha256(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for name, tensor in model.state_dict().items()
    }


def _joined(fingerprints: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(f"{name} {one}\n" for name, one in sorted(fingerprints.items())).encode()).hexdigest()


def _agreed(bad: Tensor, trainer: Trainer) -> Tensor:
    """Tell whether any process has found a non-finite number."""
    if trainer.world_size == 1:
        return bad
    found = bad.float()
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return found > 0


def _leaves_out_by_itself(optimizer: Optimizer) -> bool:
    """Tell whether `optimizer.found_inf`, on the device, keeps its kernel from a step: torch's fused ones (not BertAdam's)."""
    groups = optimizer.param_groups
    return all(group.get("fused") and group["params"][0].is_cuda for group in groups if group["params"])


def _on_its_way(flag: Tensor) -> tuple[Tensor, Callable[[], bool]]:
    """A copy of the flag for the host, and whether it has arrived; nobody waits."""
    copy, sent = torch.empty((), dtype=torch.bool, pin_memory=True), torch.cuda.Event()
    copy.copy_(flag, non_blocking=True)
    sent.record()
    return copy, sent.query
