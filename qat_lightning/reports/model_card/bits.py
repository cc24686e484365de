"""Which weights have which width, in the packed folder and in ONNX."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from qat_lightning.exporters.onnx.weights import WIDTHS
from qat_lightning.reports import tables
from qat_lightning.reports.model_card.formatting import Node
from qat_lightning.reports.model_card.run_facts import Facts
from qat_lightning.reports.summary import QUANTIZED


def bits(facts: Facts) -> Iterator[str]:
    """Widths by kind of part, in the packed folder and in ONNX."""
    widths: Node = facts.results.get("bits") or {}
    if not widths:
        return
    yield "## Bits"
    yield tables.bits({"bits": dict(_folded(widths))})
    if (facts.forms.get("packed") or {}).get("ternary_encoding") == "base3":
        yield "In `packed/` ternary weights lie five to a byte, 1.6 bits each."
    if "onnx" in facts.forms:
        small = sorted({int(width) for width in widths.values() if width < QUANTIZED})
        told = [f"weights of {width} bits in {WIDTHS[width]} each" for width in small]
        yield f"`model.onnx` stores {', '.join([*told, 'all else' if told else 'all weights'])} in float32."


def _folded(widths: Node) -> Iterator[tuple[str, float]]:
    """Layers that differ, gathered by kind and width: layers.0-3,11.attention.query."""
    layers: dict[tuple[str, float], list[int]] = {}
    for part, width in widths.items():
        found = re.fullmatch(r"layers\.(\d+)\.(.+)", part)
        layers.setdefault((found[2] if found else part, width), []).extend([int(found[1])] if found else [])
    for (kind, width), numbers in layers.items():
        yield f"layers.{_ranges(numbers)}.{kind}" if numbers else kind, width


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] → 0-2,5."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
