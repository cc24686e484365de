"""Choose a width for each quantized weight: the smallest error of the outputs that a budget of bytes or bits allows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn
from typing_extensions import TypedDict

from qat_lightning.io.documents import read_json
from qat_lightning.io.files import write_json
from qat_lightning.models.capture import Batch, SignalCapture
from qat_lightning.models.convert import QuantizationRule, adjustable_parts, quantize
from qat_lightning.models.module_paths import part_paths
from qat_lightning.models.packed_state import packed_tensors
from qat_lightning.models.quantized_model import calibrate, switch_on

WIDTHS = (2, 3, 4, 5, 6, 8)

RECORD = Path("bits.json")
"""The place of a run's choice below its folder."""


@dataclass(frozen=True)
class WidthOption:
    """One width for one weight."""

    bits: int
    elements: int
    bytes: int  # of the codes, scales and zero points in a packed folder
    error: float  # mean squared error of the model's logits when this weight alone is quantized


@torch.no_grad()
def measure_width_options(
    model: nn.Module, rules: Sequence[QuantizationRule], batches: Iterable[Batch], widths: Sequence[int] = WIDTHS
) -> dict[str, list[WidthOption]]:
    """Measure part → size and error of its weight at each width, one weight at a time, without training.

    Activations stay in full precision. Padding does not count. The model is left unchanged.

    Args:
        model: in full precision; on any device, on which `batches`, inputs (B, …), are as well.
        rules: as for `quantize`. A weight whose quantizer has no argument `bits` keeps its width and is left out.

    Raises:
        ValueError: no rule has a weight quantizer with an argument `bits`.
    """
    batches, parts = list(batches), adjustable_parts(model, rules)
    if not parts:
        raise ValueError("no quantizer of weights takes bits: choose one that does, such as LSQQuantizer")
    logits = [_logits(model, batch) for batch in batches]
    options: dict[str, list[WidthOption]] = {part: [] for part in parts}
    weights_only = [replace(rule, input=None) for rule in rules]
    for bits in widths:
        candidate = quantize(copy.deepcopy(model), weights_only, bits=dict.fromkeys(parts, bits))
        calibrate(candidate, [])
        sizes = _part_bytes(candidate, parts)
        for part in parts:
            switch_on(candidate, [part])
            errors = [
                (given.double() - expected.double()).square().mean()
                for batch, own in zip(batches, logits, strict=True)
                for given, expected in zip(_logits(candidate, batch), own, strict=True)
            ]
            elements = candidate.get_submodule(part_paths(model)[part]).weight.numel()  # type: ignore[operator]
            options[part].append(WidthOption(bits, elements, sizes[part], float(torch.stack(errors).mean())))
    return options


def choose_widths(
    options: Mapping[str, Sequence[WidthOption]],
    budget: float,
    cost: Callable[[WidthOption], float] = lambda option: option.bytes,
) -> dict[str, int]:
    """Choose one width for each part: the smallest sum of errors whose sum of costs is at most `budget`.

    The integer program  min Σ_p e_p(b_p)  subject to  Σ_p c_p(b_p) ≤ budget  is solved exactly (HiGHS).

    Args:
        budget: in the unit of `cost`.
        cost: of an option; its bytes by default. `lambda option: option.bits * option.elements` counts bits.

    Raises:
        ValueError: even the smallest options cost more.

    >>> options = {
    ...     "query": [WidthOption(2, 800, 200, error=0.9), WidthOption(4, 800, 400, error=0.1)],
    ...     "value": [WidthOption(2, 800, 200, error=0.3), WidthOption(4, 800, 400, error=0.2)],
    ... }
    >>> choose_widths(options, budget=600)
    {'query': 4, 'value': 2}
    """
    pairs = [(part, option) for part, own in options.items() for option in own]
    costs = np.array([cost(option) for _, option in pairs], dtype=float)
    least = sum(min(map(cost, own)) for own in options.values())
    if least > budget:
        raise ValueError(f"budget={budget:g} is too small: the smallest widths need {least:g}")
    errors = np.array([option.error for _, option in pairs])
    one_each = np.array([[part == name for name, _ in pairs] for part in options], dtype=float)
    solved = milp(
        errors / max(errors.max(), np.finfo(float).tiny),
        integrality=np.ones(len(pairs)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(costs, -np.inf, budget)],
        options={"mip_rel_gap": 0},
    )
    return {part: option.bits for (part, option), taken in zip(pairs, solved.x, strict=True) if taken > 0.5}


class BitRecord(TypedDict):
    """The content of `bits.json`; `made_for` identifies the settings and the teacher of the choice."""

    made_for: str
    budget: str
    bits: dict[str, int]
    options: dict[str, list[WidthOption]]


def write_record(folder: Path, record: BitRecord) -> None:
    """Write `bits.json` into a run folder."""
    write_json(folder / RECORD, TypeAdapter(BitRecord).dump_python(record, mode="json"))


def read_record(folder: Path) -> BitRecord:
    """Read `bits.json` of a run folder; ValueError if it is missing or damaged."""
    try:
        return TypeAdapter(BitRecord).validate_python(read_json(folder / RECORD))
    except FileNotFoundError as error:
        raise ValueError(f"{folder / RECORD} is missing: the run has not chosen the widths of its weights") from error
    except ValueError as error:
        raise ValueError(f"{folder / RECORD} is damaged: remove it, and the run chooses the widths again") from error


def _logits(model: nn.Module, batch: Batch) -> list[Tensor]:
    """Return the logits of each head, in evaluation mode; (positions, …) without padding where they have a token axis."""
    training = model.training
    signals = SignalCapture(model.eval())(batch)["logits"]
    model.train(training)
    mask = batch.get("attention_mask")
    return [
        logits[mask.bool()] if mask is not None and logits.shape[:2] == mask.shape else logits for logits in signals
    ]


def _part_bytes(model: nn.Module, parts: Iterable[str]) -> dict[str, int]:
    tensors, paths = packed_tensors(model).tensors, part_paths(model)
    stored = {part: [f"{paths[part]}.weight.{name}" for name in ("codes", "scale", "zero_point")] for part in parts}
    return {part: sum(tensors[name].nbytes for name in names if name in tensors) for part, names in stored.items()}
