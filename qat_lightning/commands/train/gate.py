"""The quality gate: the limits that a finished student must keep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress

from torch import Tensor, nn

from qat_lightning.analysis.layer_errors import layer_errors
from qat_lightning.commands.model_comparison import compare
from qat_lightning.commands.train.pipeline import Run
from qat_lightning.config.schema import Plain, parse_size
from qat_lightning.io.files import finite
from qat_lightning.models.capture import Signals
from qat_lightning.reports.report import GATE_MISSED

NAMED = 3
"""Layers that the message names."""


class GateError(ValueError):
    """A finished student misses a limit of `gate`."""


def layer_outputs(signals: Mapping[str, Signals], batch: Mapping[str, Tensor]) -> dict[str, float]:
    """Return layer → mean squared error of its output, largest first; empty where student and teacher differ in shape."""
    errors: list[float] = []
    with suppress(ValueError, KeyError):
        errors = layer_errors(signals["student"], signals["teacher"], batch)
    named = {f"layer {number}" if number else "embeddings": error for number, error in enumerate(errors)}
    return dict(sorted(named.items(), key=lambda pair: -pair[1]))


def check_gate(
    run: Run, teacher: nn.Module, student: nn.Module, results: Plain, layers: Mapping[str, float]
) -> GateError | None:
    """Compare the student with the limits, enter both in `results`, and return the error of a student that misses one.

    Both models are moved to the CPU in float32. `layers` is the result of `layer_outputs`.
    """
    gate, limits = run.config.gate, {}
    if gate.metric_drop is not None:
        own, other = (math.nan if results[name] is None else results[name] for name in ("student", "teacher"))
        limits["metric_drop"] = (gate.metric_drop, other - own if run.data.higher_is_better else own - other)
    if gate.agreement is not None:
        rows = len(run.data.validation_rows)
        limits["agreement"] = (gate.agreement, compare(_plain(student), _plain(teacher), run.data, rows).agreement)
    if gate.bytes is not None:
        limits["bytes"] = (parse_size(gate.bytes, "gate.bytes")[0], results["bytes"]["packed"])
    if not limits:
        return None
    excess = {name: limit - value if name == "agreement" else value - limit for name, (limit, value) in limits.items()}
    missed = [name for name, over in excess.items() if not over <= 1e-9]  # also what is not a number
    named = dict(list(layers.items())[:NAMED]) if missed else {}
    results["gate"] = finite({
        "limits": {
            name: {"limit": limit, "value": value, "missed": name in missed} for name, (limit, value) in limits.items()
        },
        "layers": named,
    })  # fmt: skip
    if not missed:
        return None
    results["status"] = GATE_MISSED
    reasons = [
        f"gate.{name}={getattr(gate, name)}, but the student has {limits[name][1]:.6g} ({excess[name]:.3g} too"
        f" {'little' if name == 'agreement' else 'much'})"
        for name in missed
    ]
    worst = ", ".join(f"{name} ({error:.3g})" for name, error in named.items())
    where = f"; the outputs that differ most from the teacher's (MSE): {worst}" if worst else ""
    return GateError(f"the student misses the gate: {'; '.join(reasons)}{where}. All results are in {run.folder}")


def _plain(model: nn.Module) -> nn.Module:
    return model.cpu().float().eval()
