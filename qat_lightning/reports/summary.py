"""The outcome of a run in words, from the numbers of its metrics.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

QUANTIZED = 16
"""Fewer bits than this is a quantized weight; 16 and 32 are floating point."""


def verdict(results: Mapping[str, Any]) -> str:
    """One sentence: the student against its teacher, and against itself without training.

    Args:
        results: metrics.json; `teacher` and `untrained` may be absent, and None is a score that is undefined.
    """
    if not _defined(results["student"]):
        teacher = f" (teacher {score(results['teacher'])})" if "teacher" in results else ""
        return f"The student's {results['metric']} is undefined: it is not a finite number{teacher}."
    parts = [_against_teacher(results), _against_untrained(results)]
    return "; ".join(part for part in parts if part) + "."


def student_kind(bits: Mapping[str, float] | None) -> str:
    """From part kind → bits of its weights: ternary, binary, 4-bit, mixed-precision (2 to 8 bit), full-precision."""
    widths = sorted({width for width in (bits or {}).values() if width and width < QUANTIZED})
    if not widths:
        return "full-precision"
    if len(widths) > 1:
        return f"mixed-precision ({widths[0]:g} to {widths[-1]:g} bit)"
    return {1: "binary", 2: "ternary"}.get(widths[0], f"{widths[0]:g}-bit")  # type: ignore[call-overload]


def score(value: float | None) -> str:
    """A metric's value, to four decimals; above 1 (perplexity) to two; "undefined" where it is not a finite number."""
    if not _defined(value):
        return "undefined"
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.2f}"


def _defined(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _against_teacher(results: Mapping[str, Any]) -> str:
    kind, metric = student_kind(results.get("bits")), results["metric"]
    student, teacher = results["student"], results.get("teacher")
    subject = f"The {kind} student"
    if "teacher" not in results:
        return f"{subject} scores {score(student)} ({metric}; a run without a teacher)"
    if not _defined(teacher):
        return f"{subject} scores {score(student)} ({metric}; the teacher's is undefined)"
    place = _place(results, teacher, "the teacher")
    if not results["higher_is_better"]:
        return f"{subject} scores {score(student)} ({metric}, lower is better; teacher {score(teacher)}) and is {place}"
    if teacher <= 0 or student < 0:  # a share of such a teacher says nothing (Matthews' correlation goes down to -1)
        return f"{subject} scores {score(student)} ({metric}; teacher {score(teacher)}) and is {place}"
    verb = "keeps" if student <= teacher else "reaches"
    share = f"{100 * student / teacher:.1f} %"
    return f"{subject} {verb} {share} of the teacher's {metric} ({score(student)} of {score(teacher)}); it is {place}"


def _against_untrained(results: Mapping[str, Any]) -> str:
    if "untrained" not in results:
        return ""
    untrained = results["untrained"]
    if not _defined(untrained):
        return "quantized without training, the same model's score was undefined"
    said = f"quantized without training, the same model scored {score(untrained)}"
    gain = results["student"] - untrained if results["higher_is_better"] else untrained - results["student"]
    return said if gain > 0 else f"{said}, so training gained nothing"


def _place(results: Mapping[str, Any], other: float, name: str) -> str:
    """`1.2 points below the teacher`: points of 100 for scores up to 1, else the metric's own unit."""
    gap, higher = results["student"] - other, results["higher_is_better"]
    in_points = higher and max(abs(results["student"]), abs(other)) <= 1
    amount = f"{abs(100 * gap):.1f}" if in_points else score(abs(gap))
    if float(amount) == 0:
        return f"level with {name}"
    amount += " point" + "s" * (amount != "1.0") if in_points else ""
    worse = "" if higher else (" (worse)" if gap > 0 else " (better)")
    return f"{amount} {'above' if gap > 0 else 'below'} {name}{worse}"
