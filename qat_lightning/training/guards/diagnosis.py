"""Find where a number that is not finite came from: run the batch again and look at every site that the model has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import Trainer
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from qat_lightning.distillation.intervention import Intervention
from qat_lightning.distillation.step import DistillationStep
from qat_lightning.io.external_errors import another_folder
from qat_lightning.io.files import atomic_write
from qat_lightning.io.screen import printable
from qat_lightning.models.capture import Batch, SignalCapture, Signals
from qat_lightning.models.module_paths import site_paths
from qat_lightning.models.sites import AXES
from qat_lightning.quantization.quantizers.lsq import LSQQuantizer


class NonFiniteError(ValueError):
    """A loss, a gradient or a weight that is NaN or infinite."""


class GuardedModule(Protocol):
    """The attributes of `QATModule` that the guards read."""

    stage: str
    terms: dict[str, Tensor]
    distillation: DistillationStep


@dataclass
class Seen:
    """One batch of an optimizer step, what is needed to run it again, and the terms of its loss."""

    batch: Batch
    seed: int
    intervention: Intervention
    terms: dict[str, Tensor] = field(default_factory=dict)

    @property
    def bad_terms(self) -> list[str]:
        """Return the terms that are not finite, each with its value."""
        return [f"{name} = {float(term)}" for name, term in self.terms.items() if not torch.isfinite(term)]


def largest(tensors: Sequence[Tensor]) -> Tensor:
    """Return max|t| over all elements; NaN if an element is NaN."""
    if tensors[0].device.type != "cpu":
        return torch.stack([norm.float() for norm in torch._foreach_norm(list(tensors), float("inf"))]).max()
    ends = (torch.aminmax(tensor.detach()) for tensor in tensors)  # the norm takes ten times as long on a CPU
    return torch.stack([torch.maximum(-low, high).float() for low, high in ends]).max()


def check_weights(module: GuardedModule, trainer: Trainer) -> None:
    """Raise NonFiniteError if an update has made a weight of the student NaN or infinite."""
    student = module.distillation.student
    named = {name: p.detach() for name, p in student.named_parameters() if p.is_floating_point() and p.numel()}
    if named and not largest(list(named.values())).isfinite():
        name = next(name for name, tensor in named.items() if not tensor.isfinite().all())
        raise NonFiniteError(
            f"stage {module.stage}, after step {trainer.global_step}: weight {name} is not finite, so no checkpoint is"
            f" written; {_remedy(trainer)}"
        )


def explain(trainer: Trainer, module: GuardedModule, step: int, seen: Sequence[Seen]) -> str:
    """Describe a step that is not finite (step, terms, layer, rows) and save its batch, one of `seen`."""
    one = next((one for one in seen if one.bad_terms), None)
    try:
        culprit, place = _find(trainer, module.distillation, seen if one is None else [one])
    except (RuntimeError, ValueError) as reason:  # too little memory, for example
        culprit, place = one or seen[0], f"the batch could not be run again ({' '.join(str(reason).split())})"
    kind = f"the loss is not finite ({', '.join(one.bad_terms)})" if one else "a gradient is not finite, its loss is"
    saved = _save(Path(trainer.default_root_dir), trainer.global_rank, culprit.batch)
    return printable(f"stage {module.stage}, step {step}: {kind}; {place}; {saved}; {_remedy(trainer)}")


def _find(trainer: Trainer, step: DistillationStep, seen: Sequence[Seen]) -> tuple[Seen, str]:
    """Return the first batch that is not finite when it is run again, and where."""
    for one in seen:
        eager = torch.compiler.set_stance("force_eager")  # a compiled student would be compiled again for the hooks
        with trainer.precision_plugin.train_step_context(), torch.enable_grad(), eager:
            if place := _place(step, one):
                return one, place
    return seen[0], "the rows of this process are finite, see the message of another process"


def _place(step: DistillationStep, seen: Seen) -> str:
    torch.manual_seed(seen.seed)
    for part in step.student.modules():
        if isinstance(part, LSQQuantizer):
            part.following = False  # it is measured, and measuring waits for the other processes
    teacher: Signals = {}
    if step.teacher is not None:
        with torch.no_grad():
            teacher = SignalCapture(step.teacher, _sites(step.teacher, step.capture_teacher))(seen.batch)
    if place := _first("teacher", teacher, seen.batch):
        return place
    with seen.intervention.apply(step.student, teacher):
        student = SignalCapture(step.student, _sites(step.student, step.capture_student))(seen.batch)
    if place := _first("student", student, seen.batch):
        return place
    total = torch.stack(list(step.weighted(student, teacher, seen.batch).values())).sum()
    if not total.isfinite():
        return "all signals are finite"
    return _first_gradient(student, total, seen.batch)


def _first(whose: str, signals: Signals, batch: Batch) -> str:
    """Return the first place of the forward pass that is not finite; empty if there is none."""
    for place, signal in _in_order(signals):
        # −∞ is the score of a masked key in half precision
        bad = signal.isnan() | signal.isposinf() if "scores" in place else ~signal.isfinite()
        if bad.any():
            return f"first in the {whose}'s {place}{_rows(bad, batch)}"
    return ""


def _first_gradient(student: Signals, total: Tensor, batch: Batch) -> str:
    """Return the last place of the forward pass whose gradient is not finite: there the backward pass met it first."""
    places = {place: signal for place, signal in _in_order(student) if signal.requires_grad}
    gradients = torch.autograd.grad(total, list(places.values()), allow_unused=True)
    for place, gradient in reversed(list(zip(places, gradients, strict=True))):
        if gradient is not None and not gradient.isfinite().all():
            return f"first in the gradient of {place}{_rows(~gradient.isfinite(), batch)}"
    return ""


def _sites(model: nn.Module, capture: Any) -> list[str]:
    """Return all sites that the model has as it is, and those that are captured."""
    found = set(getattr(capture, "paths", ()))
    for site in AXES:
        with suppress(ValueError):  # its family has no such site, or its attention is not open
            found |= {site} if site_paths(model, site) else set()
    return sorted(found)


def _in_order(signals: Signals) -> Iterator[tuple[str, Tensor]]:
    """Yield (place, signal) in the order of a forward pass."""
    sites = [*(site for site in AXES if site not in ("hidden", "logits")), "hidden"]
    yield from (("embeddings (hidden, 0)", signal) for signal in signals.get("hidden", [])[:1])
    for layer in range(max(map(len, signals.values()), default=0)):
        for site in sites:
            place = layer + (site == "hidden")  # the first hidden state is that of the embeddings
            yield from ((f"layer {layer}, {site}", signal) for signal in signals.get(site, [])[place : place + 1])
    yield from (("logits", signal) for signal in signals.get("logits", []))


def _rows(bad: Tensor, batch: Batch) -> str:
    """Name the rows of the batch with a bad element, at most ten; empty if the signal has no rows."""
    if bad.dim() == 0 or len(bad) != len(next(iter(batch.values()))):
        return ""
    rows = [int(row) for row in bad.reshape(len(bad), -1).any(1).nonzero()[:, 0]]
    more = f", … ({len(rows)} in all)" if len(rows) > 10 else ""
    return f", rows {', '.join(map(str, rows[:10]))}{more} of the batch"


def _remedy(trainer: Trainer) -> str:
    lr = f" (now {trainer.optimizers[0].param_groups[0]['lr']:.3g})" if trainer.optimizers else ""
    precise = "" if trainer.precision in ("32-true", "64-true") else ", trainer.precision=32-true"
    return (
        f"checkpoints stay, and the same command would end the same way: set a lower optimizer.lr{lr},"
        f" trainer.gradient_clip_val=1.0{precise}, and {another_folder()}"
    )


def _save(folder: Path, rank: int, batch: Batch) -> str:
    """Write the batch, one file a process; return where it is, or why it is not."""
    place = folder / f"diverged{f'.{rank}' if rank else ''}.safetensors"
    tensors = {name: value.detach().cpu().contiguous() for name, value in batch.items() if isinstance(value, Tensor)}
    try:
        with atomic_write(place) as temporary:
            save_file({name: value.clone() for name, value in tensors.items()}, temporary)
    except (OSError, SafetensorError) as reason:
        return f"its batch could not be saved ({reason})"
    return f"its batch is saved in {place}"
