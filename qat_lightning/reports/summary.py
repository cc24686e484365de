"""Summarize a run in one sentence, from the numbers of its metrics.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

LOW_PRECISION = 16
"""A weight of fewer bits is quantized; 16 and 32 bits are floating point."""

NAMES = {"teacher": "teacher", "untrained": "PTQ baseline", "student": "student"}
"""Key in metrics.json → the model's name in tables and plots."""


def verdict(results: Mapping[str, Any]) -> str:
    """Compare the student with its teacher and the PTQ baseline, if metrics.json has them, in one sentence."""
    if not _is_defined(results["student"]):
        teacher = f" (teacher {score(results['teacher'])})" if "teacher" in results else ""
        return f"The student's {results['metric']} is undefined: it is not a finite number{teacher}."
    parts = [_compare_with_teacher(results), _compare_with_baseline(results)]
    return "; ".join(part for part in parts if part) + "."


def student_kind(results: Mapping[str, Any]) -> str:
    """Name the precision of the weights: binary, ternary, 4-bit, mixed-precision (2 to 8 bit), full-precision.

    >>> student_kind({"bits": {"head": 32, "pooler": 2}, "quantizers": [{"tensor": "weights", "bits": 2, "levels": 3}]})
    'ternary'
    >>> student_kind({"bits": {"pooler": 2}, "quantizers": [{"tensor": "weights", "bits": 2, "levels": 4}]})
    '2-bit'
    """
    widths = sorted({width for width in (results.get("bits") or {}).values() if width and width < LOW_PRECISION})
    if not widths:
        return "full-precision"
    if len(widths) > 1:
        return f"mixed-precision ({widths[0]:g} to {widths[-1]:g} bit)"
    levels = {row["levels"] for row in results.get("quantizers") or [] if row["tensor"] == "weights"}
    return {(2,): "binary", (3,): "ternary"}.get(tuple(levels), f"{widths[0]:g}-bit")


def score(value: float | None) -> str:
    """Format a metric: four decimals, two above 1 (perplexity), "undefined" if it is not a finite number.

    >>> score(0.5), score(9.754), score(None)
    ('0.5000', '9.75', 'undefined')
    """
    if not _is_defined(value):
        return "undefined"
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.2f}"


def _is_defined(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _compare_with_teacher(results: Mapping[str, Any]) -> str:
    metric, student, teacher = results["metric"], results["student"], results.get("teacher")
    subject = f"The {student_kind(results)} student"
    if "teacher" not in results:
        return f"{subject} scores {score(student)} ({metric}; a run without a teacher)"
    if not _is_defined(teacher):
        return f"{subject} scores {score(student)} ({metric}; the teacher's is undefined)"
    distance = _distance(results, teacher)
    if not results["higher_is_better"]:
        return f"{subject} scores {score(student)} ({metric}, lower is better; teacher {score(teacher)}), {distance}"
    if teacher <= 0 or student < 0:  # a share of such a score has no meaning (Matthews' correlation goes down to −1)
        return f"{subject} scores {score(student)} ({metric}; teacher {score(teacher)}), {distance}"
    verb = "keeps" if student <= teacher else "reaches"
    share = f"{100 * student / teacher:.1f} %"
    return f"{subject} {verb} {share} of the teacher's {metric} ({score(student)} of {score(teacher)}), {distance}"


def _compare_with_baseline(results: Mapping[str, Any]) -> str:
    if "untrained" not in results:
        return ""
    baseline = results["untrained"]
    if not _is_defined(baseline):
        return "the PTQ baseline (the same model without training) has an undefined score"
    sentence = f"the PTQ baseline (the same model without training) scores {score(baseline)}"
    gain = results["student"] - baseline if results["higher_is_better"] else baseline - results["student"]
    return sentence if gain > 0 else f"{sentence}, so training did not improve it"


def _distance(results: Mapping[str, Any], teacher: float) -> str:
    """Name the distance: points (of 100) for scores up to 1, else the metric's own unit."""
    gap, higher = results["student"] - teacher, results["higher_is_better"]
    in_points = higher and max(abs(results["student"]), abs(teacher)) <= 1
    amount = f"{abs(100 * gap):.1f}" if in_points else score(abs(gap))
    if float(amount) == 0:
        return "equal to the teacher"
    unit = (" point" if amount == "1.0" else " points") if in_points else ""
    judgement = "" if higher else (" (worse)" if gap > 0 else " (better)")
    return f"{amount}{unit} {'above' if gap > 0 else 'below'} the teacher{judgement}"
