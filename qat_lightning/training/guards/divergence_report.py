"""What a run says and leaves behind when its numbers have gone wrong: the error's words, `diverged.md`, the batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from qat_lightning.io import markdown
from qat_lightning.io.external_errors import another_folder
from qat_lightning.io.files import atomic_write, write_text
from qat_lightning.io.markdown import code
from qat_lightning.io.screen import printable
from qat_lightning.models.packed_state import quantized_modules
from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from qat_lightning.training.guards.diagnosis import Found, Seen, found_in
from qat_lightning.training.guards.module_protocol import DistillationModule


class NonFiniteError(ValueError):
    """A run that cannot go on: its loss, a gradient or a weight is not a number, or infinite."""


def largest(tensors: Sequence[Tensor]) -> Tensor:
    """max|t| over all elements; NaN where one is."""
    if tensors[0].device.type == "cpu":  # where the norm is no vector code and takes ten times as long
        ends = (torch.aminmax(tensor.detach()) for tensor in tensors)
        found = [torch.maximum(-low, high).float() for low, high in ends]
    else:
        found = [norm.float() for norm in torch._foreach_norm(list(tensors), float("inf"))]
    return torch.stack(found).max()


def check_weights(module: DistillationModule, trainer: Trainer) -> None:
    """Raises NonFiniteError where an update has made a weight of the student infinite."""
    named = {name: p.detach() for name, p in module.student.named_parameters() if p.is_floating_point() and p.numel()}
    if named and not largest(list(named.values())).isfinite():
        name = next(name for name, tensor in named.items() if not tensor.isfinite().all())
        raise NonFiniteError(
            f"stage {module.stage}, after step {trainer.global_step}: the weights are not finite, {name} first; no"
            f" checkpoint is made of them, {_remedy(module, trainer)}"
        )


def explained(trainer: Trainer, module: DistillationModule, step: int, seen: Sequence[Seen]) -> str:
    """What the error says; the same and more goes to `diverged.md` in the run folder, the batch beside it.

    Args:
        seen: the batches of that step in order; with several processes, those of this one.
    """
    one = next((one for one in seen if one.lost), seen[0])
    lost = one.lost
    try:
        found = found_in(trainer, module, seen if not lost else [one])
    except (RuntimeError, ValueError) as reason:  # no memory, say: the run must end in these words all the same
        found = (one, [Found(f"unknown: the batch could not be run again ({' '.join(str(reason).split())})", [])])
    culprit, places = found
    rows = sorted({row for place in places for row in place.rows})
    lines = [
        f"stage {module.stage}, step {step}: "
        + (f"the loss is not finite ({', '.join(lost)})" if lost else "a gradient is not finite, its loss is"),
        *(place.where + (f", rows {_listed(place.rows)} of the batch" if place.rows else "") for place in places),
        _step_sizes(module.student),
    ]
    kept = _write(Path(trainer.default_root_dir), trainer.global_rank, lines, culprit, _remedy(module, trainer), rows)
    return "; ".join([*(line for line in lines if line), kept, _remedy(module, trainer)])


@torch.no_grad()
def _step_sizes(student: nn.Module) -> str:
    """The smallest and the largest: learned ones, and the scales that the weights have now."""
    steps = {path: part.step for path, part in student.named_modules() if isinstance(part, LSQQuantizer)}
    for path, part, quantizer in quantized_modules(student):
        if not isinstance(quantizer, LSQQuantizer) and quantizer.enabled:
            steps[f"{path}.weight"] = quantizer.codes(part.quantized_weight)[1]  # type: ignore[arg-type]
    if not steps:
        return ""
    ends = {path: (float(step.min()), float(step.max())) for path, step in steps.items()}
    low, high = min(ends, key=lambda path: ends[path][0]), max(ends, key=lambda path: ends[path][1])
    lost = [path for path, (least, most) in ends.items() if not abs(least) + abs(most) < float("inf")]
    told = f"step sizes from {ends[low][0]:.3g} ({low}) to {ends[high][1]:.3g} ({high})"
    return told if not lost else f"step sizes are not finite: {len(lost)} of {len(ends)}, {lost[0]} first"


def _remedy(module: DistillationModule, trainer: Trainer) -> str:
    precise = trainer.precision in ("32-true", "64-true")
    lr = f" (now {module.learning_rate:.3g})" if trainer.optimizers else ""
    other = "" if precise else ", trainer.precision=32-true"
    return (
        "what was saved before stays, and the same command would go on from it to the same end: give a lower optimizer.lr"
        f"{lr}, trainer.gradient_clip_val=1.0{other}, and {another_folder()}"
    )


def _write(folder: Path, rank: int, lines: Sequence[str], seen: Seen, remedy: str, rows: Sequence[int]) -> str:
    """`diverged.md` and `diverged.safetensors`, of each process; says where, or why not."""
    report = folder / f"diverged{f'.{rank}' if rank else ''}.md"
    batch = report.with_suffix(".safetensors")
    tensors = {
        name: value.detach().cpu().clone().contiguous()
        for name, value in seen.batch.items()
        if isinstance(value, Tensor)
    }
    terms = markdown.table(
        ["term", "weighted"], [[markdown.text(name), f"{float(term):.6g}"] for name, term in seen.terms.items()]
    )
    shapes = [f"- {code(name)} {tuple(value.shape)} {value.dtype}" for name, value in tensors.items()]
    text = [
        "# Numbers gone wrong", "", *(f"- {markdown.text(line)}" for line in lines if line), "", f"What to do: {remedy}.", "",
        "## The loss of the batch", "", terms, "",
        "## The batch", "", f"`{batch.name}` holds it (read it with `safetensors.torch.load_file`); seed {seen.seed},"
        f" rows {_listed(rows) if rows else 'unknown'}.", "", *shapes, "",
    ]  # fmt: skip
    try:
        with atomic_write(batch) as temporary:
            save_file(tensors, temporary)
        write_text(report, printable("\n".join(text)))
    except (OSError, SafetensorError) as reason:
        return f"no report could be written ({reason})"
    return f"see {report}"


def _listed(rows: Sequence[int]) -> str:
    """At most ten numbers."""
    return ", ".join(map(str, rows[:10])) + (f", … ({len(rows)} in all)" if len(rows) > 10 else "")
