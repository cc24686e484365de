"""What works for a model family, on a random tiny model; docs/families.md shows the results."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from qat_lightning.commands.check_model.rows import Result, missing_rows
from qat_lightning.commands.check_model.signals import check_signals
from qat_lightning.distillation.intervention import Intervention
from qat_lightning.exporters.onnx.format import OnnxFormat
from qat_lightning.exporters.packed.reader import load_packed
from qat_lightning.exporters.packed.writer import write_packed
from qat_lightning.io.external_errors import one_line
from qat_lightning.models.capture import Batch, SignalCapture
from qat_lightning.models.convert import AttentionQuantization, QuantizationRule, open_attention, quantize
from qat_lightning.models.module_paths import family, part_paths
from qat_lightning.quantization.quantizers import TernaryQuantizer, UniformQuantizer

Make = Callable[[int], nn.Module]
"""Seed → a random model in evaluation mode; the same weights for the same seed."""

MakeBatch = Callable[[int, tuple[int, ...]], Batch]
"""Seed, and the length of each sample's text → a batch without labels."""

LENGTHS, OTHER_LENGTHS = (9, 6, 3), (11, 7, 2, 12, 5)

INTERVENTIONS = {
    "TI-O": Intervention(["attention.projection"], ["attention.query", "attention.key", "attention.value"]),
    "TI-C": Intervention(["attention.context"], ["attention.query", "attention.key", "attention.value"]),
    "TI-M": Intervention(["attention.probs"], ["attention.query", "attention.key"]),
}
"""The interventions of arXiv:2302.11812."""

RULES = (
    QuantizationRule("layers.*", weight=TernaryQuantizer, input=UniformQuantizer),
    QuantizationRule("embeddings.word", weight=partial(TernaryQuantizer, granularity="per_channel"), optional=True),
    QuantizationRule("pooler", weight=TernaryQuantizer, input=UniformQuantizer, optional=True),
)
OPERANDS = AttentionQuantization(UniformQuantizer, UniformQuantizer, UniformQuantizer, UniformQuantizer)

CLOSE, ROUNDED = 1e-4, 0.3
"""Largest difference of an ONNX file's logits, of their standard deviation: of most batches, and of a batch in which a value on
the border of two codes is rounded otherwise."""


def run_checks(make: Make, make_batch: MakeBatch, onnx: bool = True) -> Iterator[Result]:
    """Yield the result of each check; rows that name no module end it.

    Args:
        onnx: False leaves out the ONNX export, which takes half a minute.
    """
    missing = list(missing_rows(make(0)))
    yield from missing
    if any(result.status == "failed" for result in missing):
        return
    checks: dict[str, Callable[[Make, MakeBatch], str | None]] = {
        "equal to eager attention": _check_eager,
        "sites": lambda make, make_batch: check_signals(open_attention(make(0)), make_batch(0, LENGTHS)),
        **{name: partial(_check_intervention, intervention) for name, intervention in INTERVENTIONS.items()},
        "packed": _check_packed,
    }
    for name, check in (checks | ({"ONNX": check_onnx} if onnx else {})).items():
        try:
            refused = check(make, make_batch)
        except Exception as error:  # of transformers, torch or the runtime as well
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            yield Result(name, "failed", f"{kind}{one_line(error)}")
        else:
            yield Result(name, "refused" if refused else "passed", refused or "")


def logits(model: nn.Module, batch: Batch) -> Tensor:
    return SignalCapture(model)(batch)["logits"][0]


def _check_eager(make: Make, make_batch: MakeBatch) -> None:
    """Compare outputs and gradients of the opened attention with those of transformers' own, in training mode."""
    eager = make(0)
    eager.set_attn_implementation("eager")  # type: ignore[operator]
    results = []
    for model in (eager, open_attention(make(0))):
        torch.manual_seed(1)
        output = logits(model.train(), make_batch(0, LENGTHS))
        output.square().sum().backward()
        gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        results.append({"the logits": output} | gradients)
    first, second = results
    for name in first.keys() | second.keys():
        if name not in first or name not in second or not torch.equal(first[name], second[name]):
            raise ValueError(f"{name if name == 'the logits' else f'the gradient of {name}'} differs")


@torch.no_grad()
def _check_intervention(intervention: Intervention, make: Make, make_batch: MakeBatch) -> str | None:
    """Put a teacher's signals in place; the projection must be that of the teacher's context."""
    teacher, model = open_attention(make(1)), open_attention(make(2))
    batch, (site,) = make_batch(0, LENGTHS), intervention.sites
    try:
        intervention.check(model)
    except ValueError as error:
        if family(model).fused:
            return str(error)
        raise
    before, signals = logits(model, batch), SignalCapture(teacher, [site])(batch)
    with intervention.apply(model, signals):
        received = SignalCapture(model, ["attention.projection"])(batch)
    if torch.equal(received["logits"][0], before):
        raise ValueError(f"the teacher's {site} changes nothing")
    if site == "attention.context":
        project = model.get_submodule(part_paths(model)["layers.0.attention.projection"])
        if not torch.equal(received["attention.projection"][0], project(signals[site][0].transpose(1, 2).flatten(2))):
            raise ValueError("the projection does not read the teacher's context")
    return None


def _student(make: Make) -> nn.Module:
    return quantize(make(0), RULES, OPERANDS)


@torch.no_grad()
def _check_packed(make: Make, make_batch: MakeBatch) -> None:
    model, batch = _student(make), make_batch(0, LENGTHS)
    if torch.equal(logits(model, batch), logits(make(0), batch)):
        raise ValueError("quantizers change nothing")
    with TemporaryDirectory(prefix="qat_lightning_check_") as folder:
        write_packed(model, Path(folder) / "packed")
        if not torch.equal(logits(load_packed(Path(folder) / "packed"), batch), logits(model, batch)):
            raise ValueError("the packed folder predicts something else than the student")


@torch.no_grad()
def check_onnx(make: Make, make_batch: MakeBatch) -> str | None:
    """Compare an ONNX file with the student, on batches of other sizes; return why a family has none.

    Raises:
        ValueError: they differ.
    """
    from qat_lightning.exporters.onnx.exporter import export_onnx  # torch's exporter takes seconds to import

    model = _student(make)
    if (reason := OnnxFormat().supports(model)) is not None:
        return reason
    with TemporaryDirectory(prefix="qat_lightning_check_") as folder:
        exported = export_onnx(copy.deepcopy(model), Path(folder) / "model.onnx", make_batch(0, LENGTHS))
        differences = sorted(_difference(model, exported, make_batch(seed, OTHER_LENGTHS)) for seed in range(1, 10))
    if differences[len(differences) // 2] > CLOSE or differences[-1] > ROUNDED:
        raise ValueError(f"the file's logits differ from the student's by {differences} of their standard deviation")
    return None


def _difference(model: nn.Module, exported: nn.Module, batch: Mapping[str, Tensor]) -> float:
    expected = logits(model, batch)
    return float((exported(**batch)["logits"] - expected).abs().max() / expected.std())
