"""Callbacks that run the papers' analyses during a run. They work on copies, draw no random numbers that training draws,
and write from the first process only, so training is bit for bit what it is without them.

A callback is made for each stage of a run. Those that look at the finished student know their stage by what it has: a
teacher or quantizers (so not the teacher's own fine-tuning) and no intervention schedule (so not the intervene stage).
A strategy that shards the weights over processes is not supported: no process has a model to copy.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from qat_lightning.analysis.attention_maps import MAPS, compare_maps, mean
from qat_lightning.analysis.hessian import hessian_spectrum, with_norms
from qat_lightning.analysis.loss_landscape import loss_landscape
from qat_lightning.analysis.result_files import write_landscapes, write_spectra
from qat_lightning.analysis.training_log import STEP_SIZES
from qat_lightning.distillation.losses.logits import TaskLoss
from qat_lightning.models.capture import Batch, SignalCapture, Signals
from qat_lightning.models.convert import open_attention
from qat_lightning.models.quantized_model import mean_step_sizes, step_sizes
from qat_lightning.training.callbacks import InterventionSchedule
from qat_lightning.training.module import QATModule


class AttentionAnalysis(Callback):
    """Logs `analysis/ranking_loss`, `analysis/cover_length_ratio` and `analysis/map_divergence` after each validation.

    The student's attention against its teacher's on the first `rows` validation rows, mean over layers and heads
    (arXiv:2211.11014 §3), with the cover-length ratio's `k`. Silent in a stage without a teacher. Costs a forward pass over
    these rows and, while it runs, a copy of the student; the teacher is asked once.
    """

    def __init__(self, rows: int = 16, k: int = 5) -> None:
        for name, value in {"rows": rows, "k": k}.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be 1 or more")
        self.rows, self.k = rows, k
        self._teacher: Signals | None = None

    def on_validation_epoch_end(self, trainer: Trainer, module: QATModule) -> None:  # type: ignore[override]
        if not trainer.is_global_zero or module.full_teacher is None:
            return
        # Lightning validates in inference mode; what is kept until the next validation must be no inference tensor.
        with torch.inference_mode(False), torch.no_grad():
            batch = _moved(trainer.datamodule.example_batch(self.rows), trainer, module.device)  # type: ignore[attr-defined]
            if self._teacher is None:
                seen = SignalCapture(_copied(module.full_teacher, module.device), [MAPS])(batch)
                self._teacher = {MAPS: [layer.cpu() for layer in seen[MAPS]]}
            student = SignalCapture(_copied(module.student, module.device), [MAPS])(batch)
            measured = compare_maps(student, self._teacher, batch, self.k)
        for name, layers in measured.items():
            module.log(f"analysis/{name}", mean(layers), rank_zero_only=True)


class StepSizeHistory(Callback):
    """Logs `step_sizes/<weights or activations>/<layer>`, the geometric mean of what is learned there, for the report.

    At the steps at which the trainer logs.
    """

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: QATModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0:
            for kind, places in mean_step_sizes(module.student).items():
                module.log_dict({f"{STEP_SIZES}/{kind}/{place}": mean for place, mean in places.items()})


class HessianSpectrum(Callback):
    """At the end of the train stage: the top Hessian eigenvalues of mini-batches → `analysis/hessian.json`.

    Of the task's loss over all trainable weights, in evaluation mode, the largest magnitudes (arXiv:2211.11014,
    2302.11812). Mini-batches are 32 training rows. Costs, for each model and mini-batch, some 30 to 100 Hessian-vector
    products of about two training steps each, and 12 numbers of memory for each parameter: seconds for a small model,
    hours for BERT-base on a CPU. The other processes of a run wait, at most as long as their backend's timeout.

    Args:
        batches, top: mini-batches, and eigenvalues of each.
        teacher: the teacher's too, to compare with; doubles the cost.
        norm_weight: adds norm_weight·Σ_p ‖p‖₂ to the loss. 0.01 is the released code's; it hides the loss's own
            eigenvalues behind norm_weight/‖p‖ where a tensor is nearly zero, as a new head's bias is.
    """

    def __init__(self, batches: int = 8, top: int = 3, teacher: bool = True, norm_weight: float = 0.0) -> None:
        for name, value, most in (("batches", batches, 10_000), ("top", top, 100)):
            if not 1 <= value <= most:
                raise ValueError(f"{name}={value} must be 1 or more, at most {most}")
        if not 0 <= norm_weight < math.inf:
            raise ValueError(f"norm_weight={norm_weight} must be 0 or more, and finite")
        self.batches, self.top, self.teacher, self.norm_weight = batches, top, teacher, norm_weight

    def on_fit_end(self, trainer: Trainer, module: QATModule) -> None:  # type: ignore[override]
        """Not on_train_end: the stage's clock has stopped, and its last checkpoint is written."""
        if not (batches := _training_batches(trainer, module, self.batches)):
            return
        spectra = {name: self._spectrum(name, model, batches) for name, model in _models(trainer, module, self.teacher)}
        loss = f"the task's loss + {self.norm_weight:g}·Σ‖p‖₂" if self.norm_weight else "the task's loss"
        about = f"Top {self.top} by magnitude, of {loss} on each of {len(batches)} mini-batches of the training data"
        write_spectra(Path(trainer.default_root_dir), spectra, about)

    def _spectrum(self, name: str, model: nn.Module, batches: list[Batch]) -> list[list[float]]:
        """Empty, with a warning, where the training diverged: its result is kept."""
        parameters = [parameter for parameter in _weights(model) if parameter.requires_grad]
        loss = with_norms(_task_loss(model), parameters, self.norm_weight) if self.norm_weight else _task_loss(model)
        try:
            return hessian_spectrum(loss, parameters, batches, top=self.top)
        except ValueError as reason:
            rank_zero_warn(f"no Hessian spectrum of the {name}: {reason}")
            return []


class LossLandscape(Callback):
    """At the end of the train stage: the task's loss on a plane through the weights → `analysis/landscape.json`.

    Over [−span, span]² in two random directions (arXiv:2211.11014, released code), drawn with `seed`, the mean over
    mini-batches of 32 training rows, in evaluation mode. Costs points² · batches forward passes for each model (with
    `teacher` two), and four times its memory. `points` on each side is odd, so that the weights are on the grid.
    """

    def __init__(
        self, points: int = 21, span: float = 1.0, batches: int = 1, teacher: bool = True, seed: int = 0
    ) -> None:
        if not 3 <= points <= 1001 or points % 2 == 0:
            raise ValueError(f"points={points} must be odd, so that the weights are on the grid, and 3 to 1001")
        if batches < 1:
            raise ValueError(f"batches={batches} must be 1 or more")
        if not 0 < span < math.inf:
            raise ValueError(f"span={span} must be positive, and finite")
        self.points, self.span, self.batches, self.teacher, self.seed = points, span, batches, teacher, seed

    def on_fit_end(self, trainer: Trainer, module: QATModule) -> None:  # type: ignore[override]
        if not (batches := _training_batches(trainer, module, self.batches)):
            return
        landscapes = {
            name: loss_landscape(_mean_loss(model, batches), _weights(model), self.points, self.span, self.seed)
            for name, model in _models(trainer, module, self.teacher)
        }
        about = f"The task's loss, mean over mini-batches of the training data ({len(batches)}); seed {self.seed}"
        write_landscapes(Path(trainer.default_root_dir), landscapes, about)


def _models(trainer: Trainer, module: QATModule, teacher: bool) -> Iterator[tuple[str, nn.Module]]:
    """A copy of each model by name, one at a time; of the teacher all weights count, as of the student."""
    device = trainer.strategy.root_device
    if teacher and module.full_teacher is not None:
        yield "teacher", _copied(module.full_teacher, device).requires_grad_(True)
    yield "student", _copied(module.student, device)


def _weights(model: nn.Module) -> list[nn.Parameter]:
    """All parameters but the learned step sizes: the estimated gradient of those is of no function (`top_eigenvalues`)."""
    steps = {id(step) for kind in step_sizes(model).values() for step in kind}
    return [parameter for parameter in model.parameters() if id(parameter) not in steps]


def _copied(model: nn.Module, device: torch.device) -> nn.Module:
    """In evaluation mode, its attention opened: fused attention has neither maps nor second derivatives."""
    return open_attention(copy.deepcopy(model)).eval().to(device)


def _training_batches(trainer: Trainer, module: QATModule, count: int) -> list[Batch]:
    """So many batches of 32 rows, or of all rows if these are fewer; the same for every seed.

    None unless this is the first process, at the end of the stage that trains the student for good.
    """
    intervening = any(isinstance(callback, InterventionSchedule) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    quantized = any(hasattr(part, "weight_quantizer") for part in module.student.modules())
    if not trainer.is_global_zero or intervening or not (quantized or module.teacher is not None):
        return []
    batches = trainer.datamodule.calibration_batches(32 * count)  # type: ignore[attr-defined]
    return [_moved(batch, trainer, trainer.strategy.root_device) for batch in batches]


def _moved(batch: Batch, trainer: Trainer, device: torch.device) -> dict[str, Any]:
    """On the models' device, in the precision of their weights."""
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    return trainer.precision_plugin.convert_input(moved)


def _task_loss(model: nn.Module) -> Callable[[Batch], Tensor]:
    observe, task = SignalCapture(model), TaskLoss()
    return lambda batch: task(observe(batch), {}, batch)


def _mean_loss(model: nn.Module, batches: list[Batch]) -> Callable[[], Tensor]:
    loss = _task_loss(model)
    return lambda: torch.stack([loss(batch) for batch in batches]).mean()
