import pytest

from qat_lightning.reports.summary import score, student_kind, verdict

ABSENT = object()
TERNARY = [{"tensor": "weights", "bits": 2, "levels": 3}, {"tensor": "inputs", "bits": 8, "levels": 255}]
RUN = {
    "metric": "accuracy",
    "higher_is_better": True,
    "teacher": 0.93,
    "untrained": 0.3125,
    "student": 0.912,
    "bits": {"attention.query": 2, "head": 32},
    "quantizers": TERNARY,
}
PERPLEXITY = {
    "metric": "perplexity",
    "higher_is_better": False,
    "teacher": 12.34,
    "untrained": 1034.2,
    "student": 13.24,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "The ternary student keeps 98.1 % of the teacher's accuracy (0.9120 of 0.9300), 1.8 points below the teacher;"
         " the PTQ baseline (the same model without training) scores 0.3125."),
        ({"student": 0.94, "untrained": ABSENT}, "The ternary student reaches 101.1 % of the teacher's accuracy"
         " (0.9400 of 0.9300), 1.0 point above the teacher."),
        ({"student": 0.9297, "untrained": ABSENT}, "The ternary student keeps 100.0 % of the teacher's accuracy"
         " (0.9297 of 0.9300), equal to the teacher."),
        ({"untrained": 0.95, "teacher": ABSENT}, "The ternary student scores 0.9120 (accuracy; a run without a teacher);"
         " the PTQ baseline (the same model without training) scores 0.9500, so training did not improve it."),
        ({"student": -0.02, "teacher": 0.5, "untrained": ABSENT}, "The ternary student scores -0.0200 (accuracy; teacher"
         " 0.5000), 52.0 points below the teacher."),
        ({"student": 88.5, "teacher": 90.0, "untrained": ABSENT}, "The ternary student keeps 98.3 % of the teacher's"
         " accuracy (88.50 of 90.00), 1.50 below the teacher."),  # a metric that is not between 0 and 1
        ({"student": float("nan")}, "The student's accuracy is undefined: it is not a finite number (teacher 0.9300)."),
        ({"student": None, "teacher": ABSENT}, "The student's accuracy is undefined: it is not a finite number."),
        ({"teacher": None, "untrained": None}, "The ternary student scores 0.9120 (accuracy; the teacher's is undefined);"
         " the PTQ baseline (the same model without training) has an undefined score."),
        (PERPLEXITY, "The ternary student scores 13.24 (perplexity, lower is better; teacher 12.34), 0.9000 above the"
         " teacher (worse); the PTQ baseline (the same model without training) scores 1034.20."),
    ],
)  # fmt: skip
def test_verdict_compares_student_teacher_and_baseline(changes: dict[str, object], expected: str) -> None:
    assert verdict({name: value for name, value in (RUN | changes).items() if value is not ABSENT}) == expected


@pytest.mark.parametrize(
    ("bits", "levels", "expected"),
    [
        ({"a": 1, "head": 32}, [2], "binary"),
        ({"a": 2, "b": 2, "head": 32}, [3], "ternary"),
        ({"a": 2, "head": 32}, [4], "2-bit"),
        ({"a": 2, "head": 32}, [3, 4], "2-bit"),
        ({"a": 4, "head": 16}, [16], "4-bit"),
        ({"a": 2, "b": 8, "head": 32}, [3, 255], "mixed-precision (2 to 8 bit)"),
        ({"head": 32}, [], "full-precision"),
        (None, [], "full-precision"),
    ],
)
def test_student_is_named_by_bits_and_levels(bits: object, levels: list[int], expected: str) -> None:
    rows = [{"tensor": "weights", "levels": count} for count in levels]
    assert student_kind({"bits": bits, "quantizers": rows}) == expected


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -float("inf")])
def test_score_that_is_not_finite_is_undefined(value: float | None) -> None:
    assert score(value) == "undefined"
