"""Where a number that is not finite came from: the batch is run once more, watched at every site that the model has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from qat_lightning.distillation.intervention import Intervention
from qat_lightning.models.capture import Batch, SignalCapture, Signals
from qat_lightning.models.module_paths import site_paths
from qat_lightning.models.sites import AXES
from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from qat_lightning.training.guards.module_protocol import DistillationModule

FLOAT32 = torch.finfo(torch.float32).max


@dataclass
class Seen:
    """One batch of a step, all that it takes to run it again, and the terms of its loss."""

    batch: Batch
    seed: int
    intervention: Intervention
    terms: dict[str, Tensor] = field(default_factory=dict)

    @property
    def lost(self) -> list[str]:
        """The terms that are not finite, each with its value."""
        bad = [f"{name} = {float(term)}" for name, term in self.terms.items() if not torch.isfinite(term)]
        total = sum(float(term) for term in self.terms.values())
        return bad or ([] if math.isfinite(total) and total <= FLOAT32 else [f"their sum = {total:.3g}"])


@dataclass(frozen=True)
class Found:
    """What was not finite first, and in which rows of the batch."""

    where: str
    rows: list[int]


def found_in(trainer: Trainer, module: DistillationModule, seen: Sequence[Seen]) -> tuple[Seen, list[Found]]:
    """The first batch that brings something forth again, and what."""
    for one in seen:
        eager = torch.compiler.set_stance("force_eager")  # else a compiled student is compiled anew, to be watched
        with trainer.precision_plugin.train_step_context(), torch.enable_grad(), eager:
            if places := _places(module, one):
                return one, places
    return seen[0], [Found("nothing is wrong with the rows of this process: see what another one says", [])]


def _places(module: DistillationModule, seen: Seen) -> list[Found]:
    torch.manual_seed(seen.seed)
    for part in module.student.modules():
        if isinstance(part, LSQQuantizer):
            part.following = False  # measured already, and measuring waits for the other processes
    taught: Signals = {}
    if module.teacher is not None:
        with torch.no_grad():
            taught = SignalCapture(module.teacher, _sites(module.teacher, module.observe_teacher))(seen.batch)
    if (found := _first("teacher", taught, seen.batch)) is not None:
        return [found]
    with seen.intervention.apply(module.student, taught):
        own = SignalCapture(module.student, _sites(module.student, module.observe_student))(seen.batch)
    if (found := _first("student", own, seen.batch)) is not None:
        return [found, *_bad_weight(module.student)]
    total = torch.stack(list(module.weighted(own, taught, seen.batch).values())).sum()
    if not total.isfinite():
        rows = _rows_by_loss(module, own, taught, seen.batch)
        place, value = max(
            ((place, float(signal.detach().abs().max())) for place, signal in _in_order(own)), key=lambda one: one[1]
        )
        return [Found(f"all signals are finite, the largest is {value:.3g} in the student's {place}", rows)]
    return _first_gradient(module.student, own, total, seen.batch)


def _first(whose: str, signals: Signals, batch: Batch) -> Found | None:
    for place, signal in _in_order(signals):
        # A score of −∞ is a masked one, as half precision makes it of its smallest number.
        bad = signal.isnan() | signal.isposinf() if "scores" in place else ~signal.isfinite()
        if bad.any():
            return Found(f"first in the {whose}'s {place}", _rows(bad, batch))
    return None


def _first_gradient(student: nn.Module, own: Signals, total: Tensor, batch: Batch) -> list[Found]:
    """The backward pass begins at the end, so the last place that has a bad gradient had it first."""
    places = [(place, signal) for place, signal in _in_order(own) if signal.requires_grad]
    named = [(name, parameter) for name, parameter in student.named_parameters() if parameter.requires_grad]
    wanted = [tensor for _, tensor in (*places, *named)]
    gradients = torch.autograd.grad(total, wanted, allow_unused=True)
    bad = [gradient is not None and not gradient.isfinite().all() for gradient in gradients]
    found = []
    if wrong := [index for index in range(len(places)) if bad[index]]:
        index = wrong[-1]
        found.append(Found(f"first in the gradient of {places[index][0]}", _rows(~gradients[index].isfinite(), batch)))
    if names := [name for (name, _), is_bad in zip(named, bad[len(places) :], strict=True) if is_bad]:
        count = f"{len(names)} of {len(named)} parameters"
        found.append(Found(f"{count} have a gradient that is not finite, {names[-1]} among them", []))
    return found


def _bad_weight(student: nn.Module) -> list[Found]:
    bad = [name for name, parameter in student.named_parameters() if not parameter.isfinite().all()]
    return [Found(f"the weight {bad[0]} was not finite before, so an earlier update was too large", [])] if bad else []


def _rows_by_loss(module: DistillationModule, own: Signals, taught: Signals, batch: Batch) -> list[int]:
    """The rows whose own loss is not finite; none where the loss cannot be had of one row."""

    def alone(signals: Signals, row: int) -> Signals:
        return {site: [signal[row : row + 1] for signal in layers] for site, layers in signals.items()}

    found = []
    for row in range(len(next(iter(batch.values())))):
        one = {name: value[row : row + 1] for name, value in batch.items() if isinstance(value, Tensor)}
        try:
            terms = module.weighted(alone(own, row), alone(taught, row), one)
        except (RuntimeError, ValueError, IndexError):
            return []
        if not all(term.isfinite() for term in terms.values()):
            found.append(row)
    return found


def _sites(model: nn.Module, observed: object) -> list[str]:
    """All sites that the model has as it stands, and what it is watched at already."""
    at_hand = set(getattr(observed, "paths", ()))
    for site in AXES:
        try:
            at_hand |= {site} if site_paths(model, site) else set()
        except ValueError:  # its family has no such site, or its attention is not open
            continue
    return sorted(at_hand)


def _in_order(signals: Signals) -> Iterator[tuple[str, Tensor]]:
    """(place, signal) as they come in a forward pass."""
    hidden, sites = signals.get("hidden", []), [site for site in AXES if site not in ("hidden", "logits")]
    depth = max((len(layers) for site, layers in signals.items() if site != "logits"), default=0)
    yield from (("embeddings (hidden, 0)", signal) for signal in hidden[:1])
    for layer in range(depth):
        yield from (
            (f"layer {layer}, {site}", signals[site][layer]) for site in sites if layer < len(signals.get(site, ()))
        )
        yield from ((f"layer {layer}, hidden", signal) for signal in hidden[layer + 1 : layer + 2])
    yield from (("logits", signal) for signal in signals.get("logits", []))


def _rows(bad: Tensor, batch: Batch) -> list[int]:
    """The rows of the batch in which something is bad; none where the signal has no rows of its own."""
    if bad.dim() == 0 or len(bad) != len(next(iter(batch.values()))):
        return []
    return [int(row) for row in bad.reshape(len(bad), -1).any(1).nonzero()[:, 0]]
