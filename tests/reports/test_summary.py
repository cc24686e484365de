import pytest

from qat_lightning.reports.summary import score, student_kind, verdict

ABSENT = object()
RUN = {
    "metric": "accuracy",
    "higher_is_better": True,
    "teacher": 0.93,
    "untrained": 0.3125,
    "student": 0.912,
    "bits": {"attention.query": 2, "head": 32},
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
        (
            {},
            "The ternary student keeps 98.1 % of the teacher's accuracy (0.9120 of 0.9300); it is 1.8 points below the"
            " teacher; quantized without training, the same model scored 0.3125.",
        ),
        ({"student": 0.94, "untrained": ABSENT}, "The ternary student reaches 101.1 % of the teacher's accuracy"
         " (0.9400 of 0.9300); it is 1.0 point above the teacher."),
        ({"student": 0.9297, "untrained": ABSENT}, "The ternary student keeps 100.0 % of the teacher's accuracy"
         " (0.9297 of 0.9300); it is level with the teacher."),
        ({"teacher": ABSENT}, "The ternary student scores 0.9120 (accuracy; a run without a teacher); quantized without"
         " training, the same model scored 0.3125."),
        ({"untrained": 0.95, "teacher": ABSENT}, "The ternary student scores 0.9120 (accuracy; a run without a teacher);"
         " quantized without training, the same model scored 0.9500, so training gained nothing."),
        ({"student": -0.02, "teacher": 0.5, "untrained": ABSENT}, "The ternary student scores -0.0200 (accuracy; teacher"
         " 0.5000) and is 52.0 points below the teacher."),
        ({"student": 0.02, "teacher": 0.0, "untrained": ABSENT}, "The ternary student scores 0.0200 (accuracy; teacher"
         " 0.0000) and is 2.0 points above the teacher."),
        ({"student": 88.5, "teacher": 90.0, "untrained": ABSENT}, "The ternary student keeps 98.3 % of the teacher's"
         " accuracy (88.50 of 90.00); it is 1.50 below the teacher."),  # a metric that is not between 0 and 1
        ({"student": float("nan")}, "The student's accuracy is undefined: it is not a finite number (teacher 0.9300)."),
        ({"student": None, "teacher": ABSENT}, "The student's accuracy is undefined: it is not a finite number."),
        ({"teacher": None, "untrained": None}, "The ternary student scores 0.9120 (accuracy; the teacher's is undefined);"
         " quantized without training, the same model's score was undefined."),
        (PERPLEXITY, "The ternary student scores 13.24 (perplexity, lower is better; teacher 12.34) and is 0.9000 above"
         " the teacher (worse); quantized without training, the same model scored 1034.20."),
        (PERPLEXITY | {"student": 12.0, "untrained": 11.0}, "The ternary student scores 12.00 (perplexity, lower is"
         " better; teacher 12.34) and is 0.3400 below the teacher (better); quantized without training, the same model"
         " scored 11.00, so training gained nothing."),
    ],
)  # fmt: skip
def test_says_it_in_a_sentence(changes: dict[str, object], expected: str) -> None:
    assert verdict({name: value for name, value in (RUN | changes).items() if value is not ABSENT}) == expected


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        ({"a": 1, "head": 32}, "binary"),
        ({"a": 2, "b": 2, "head": 32}, "ternary"),
        ({"a": 4, "head": 16}, "4-bit"),
        ({"a": 2, "b": 8, "head": 32}, "mixed-precision (2 to 8 bit)"),
        ({"head": 32}, "full-precision"),
        (None, "full-precision"),
    ],
)
def test_names_the_student_by_its_bits(bits: dict[str, float] | None, expected: str) -> None:
    assert student_kind(bits) == expected


def test_scores_have_four_decimals() -> None:
    assert [score(0.5), score(-0.12345), score(13.2)] == ["0.5000", "-0.1235", "13.20"]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_a_finite_number_is_undefined(value: float | None) -> None:
    assert score(value) == "undefined"
