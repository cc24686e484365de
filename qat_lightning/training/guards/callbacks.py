"""Callbacks that end a run when a number is not finite or the teacher changes.

`QATModule` adds them to every Trainer. Its constructor checks the two models (`check_teacher`), and
`qat_lightning.commands.train.preflight` checks models and data together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from qat_lightning.io.external_errors import another_folder
from qat_lightning.training.guards.diagnosis import GuardedModule, NonFiniteError, Seen, check_weights, explain, largest
from qat_lightning.training.teacher_cache.tensor_files import bytes_of


class FrozenTeacherCheck(Callback):
    """Raises ValueError unless the teacher is in evaluation mode and the same, bit for bit, during a stage.

    It is compared before each checkpoint as well, and on resume with the teacher that the checkpoint was made with.
    """

    def __init__(self) -> None:
        self.before: dict[str, str] = {}
        self.saved: str | None = None  # fingerprint in the checkpoint that the stage resumes from

    def state_dict(self) -> dict[str, Any]:
        return {"teacher": _joined(self.before)} if self.before else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.saved = state.get("teacher")

    def on_fit_start(self, trainer: Trainer, module: GuardedModule) -> None:  # type: ignore[override]
        self.before = _fingerprints(module.distillation.teacher)
        if self.saved is not None and self.before and self.saved != _joined(self.before):
            raise ValueError(f"stage {module.stage}: the teacher is not that of its checkpoint: set {another_folder()}")

    def on_train_batch_start(self, trainer: Trainer, module: GuardedModule, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        teacher = module.distillation.teacher
        for name, part in teacher.named_modules() if teacher is not None else ():
            if part.training:
                raise ValueError(f"the teacher is in training mode ({name or 'all of it'}): call teacher.eval()")

    def on_save_checkpoint(self, trainer: Trainer, module: GuardedModule, checkpoint: Any) -> None:  # type: ignore[override]
        self._check(module)

    def on_train_end(self, trainer: Trainer, module: GuardedModule) -> None:  # type: ignore[override]
        self._check(module)

    def _check(self, module: GuardedModule) -> None:
        after = _fingerprints(module.distillation.teacher)
        changed = [name for name in self.before | after if after.get(name) != self.before.get(name)]
        if self.before and changed:
            raise ValueError(
                f"stage {module.stage} has changed its teacher, which must stay as it is: {changed[0]} first, {len(changed)}"
                f" of {len(after)} tensors in all; look for a callback that writes to it, or for weights that it shares"
                " with the student, and hand over a copy.deepcopy"
            )


class NonFiniteCheck(Callback):
    """Raises NonFiniteError at the first step whose loss or gradient is not finite, before it changes the weights.

    If gradients are scaled (16-mixed), infinite gradients are normal, since the scaler skips such a step; only the loss is
    checked. All processes end at the same step. The host waits for the answer of each step, except on CUDA with a fused
    optimizer: its kernel skips that step and all after it, and the answer is read when it has arrived, one or two steps
    later, and before any checkpoint is written.
    """

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.answers: list[_Answer] = []
        self.stopped: Tensor | None = None

    def on_train_batch_start(self, trainer: Trainer, module: GuardedModule, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        # after a callback that seeds each batch, initial_seed reproduces the dropout
        self.seen.append(Seen(batch, torch.initial_seed(), module.distillation.intervention))

    def on_before_backward(self, trainer: Trainer, module: GuardedModule, loss: Tensor) -> None:  # type: ignore[override]
        self.seen[-1].terms = module.terms  # and not `loss`, which is scaled

    def on_before_optimizer_step(self, trainer: Trainer, module: GuardedModule, optimizer: Optimizer) -> None:  # type: ignore[override]
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        bad, step = self._bad(trainer, module, gradients=not scaled), trainer.global_step + 1
        seen, self.seen = self.seen, []
        if scaled or not _leaves_out_by_itself(optimizer):
            self.answers.append(_Answer(step, seen, bad, lambda: True))
        else:
            self.stopped = bad if self.stopped is None else self.stopped | bad
            optimizer.found_inf = self.stopped.float()  # type: ignore[attr-defined]
            self.answers.append(_Answer(step, seen, *_on_its_way(self.stopped)))
        self._read_answers(trainer, module, wait=False)

    def on_save_checkpoint(self, trainer: Trainer, module: GuardedModule, checkpoint: Any) -> None:  # type: ignore[override]
        self._read_answers(trainer, module, wait=True)

    def on_train_end(self, trainer: Trainer, module: GuardedModule) -> None:  # type: ignore[override]
        self._read_answers(trainer, module, wait=True)
        check_weights(module, trainer)
        for optimizer in trainer.optimizers:
            if self.stopped is not None:
                del optimizer.found_inf  # type: ignore[attr-defined]
        self.stopped, self.seen = None, []

    def _bad(self, trainer: Trainer, module: GuardedModule, gradients: bool) -> Tensor:
        """Tell, on the device, whether any process has found a non-finite number in this step."""
        totals = [torch.stack(list(one.terms.values())).sum() for one in self.seen if one.terms]
        found = [parameter.grad for parameter in module.distillation.student.parameters() if parameter.grad is not None]
        if gradients and found:
            totals.append(largest(found))
        bad = ~torch.stack([total.float() for total in totals]).isfinite().all() if totals else torch.tensor(False)
        if trainer.world_size == 1:
            return bad
        anywhere = bad.float()
        torch.distributed.all_reduce(anywhere, torch.distributed.ReduceOp.MAX)
        return anywhere > 0

    def _read_answers(self, trainer: Trainer, module: GuardedModule, wait: bool) -> None:
        """Raise for a bad step among the answers that have arrived, or with `wait` among all."""
        while self.answers and (wait or self.answers[0].arrived()):
            answer = self.answers.pop(0)
            while not answer.arrived():
                torch.cuda.current_stream().synchronize()
            if answer.bad:
                self.answers = []
                raise NonFiniteError(explain(trainer, module, answer.step, answer.seen))


class _Answer(NamedTuple):
    """Tells whether a step was bad, once the answer has arrived from the device."""

    step: int
    seen: Sequence[Seen]
    bad: Tensor
    arrived: Callable[[], bool]


def _fingerprints(model: nn.Module | None) -> dict[str, str]:
    """Name → SHA-256 of each tensor of a model's state."""
    state = {} if model is None else model.state_dict()
    return {name: hashlib.sha256(bytes_of(tensor)).hexdigest() for name, tensor in state.items()}


def _joined(fingerprints: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(f"{name} {one}\n" for name, one in sorted(fingerprints.items())).encode()).hexdigest()


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
