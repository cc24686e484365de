"""`quantization.budget`: a run chooses the widths of its weights."""

from pathlib import Path

import pytest

from qat_lightning.analysis.bit_allocation import read_record
from qat_lightning.config.schema import ConfigError
from tests.training.runs import composed, small_run

LSQ = ("quantization=lsq_w2a8", "quantization.weight.initialization=lsq", "quantization.calibration_rows=8")


def test_a_run_meets_its_budget_and_the_table_repeats_it(tmp_path: Path) -> None:
    chosen = small_run(tmp_path / "budget", *LSQ, "quantization.budget=2.5bits", "quantization.budget_widths=[2,4]")
    record = read_record(tmp_path / "budget")
    options = {part: next(o for o in own if o.bits == record["bits"][part]) for part, own in record["options"].items()}
    weights = sum(option.elements for option in options.values())
    mean = sum(option.bits * option.elements for option in options.values()) / weights
    assert 2.3 < mean <= 2.5
    table = ", ".join(f"{part}: {bits}" for part, bits in record["bits"].items())
    given = small_run(tmp_path / "bits", *LSQ, f"quantization.bits={{{table}}}")
    assert given["student_hash"] == chosen["student_hash"]
    assert given["bytes"]["packed"] == chosen["bytes"]["packed"]
    assert "## Widths under the budget" in (tmp_path / "budget" / "report.md").read_text(encoding="utf-8")


def test_a_budget_in_bytes_holds_for_the_whole_model(tmp_path: Path) -> None:
    budget = 15_000
    results = small_run(
        tmp_path, *LSQ, f"quantization.budget={budget}B", "stages.teacher.max_steps=1", "stages.intervene.max_steps=0",
        "stages.train.max_steps=1",
    )  # fmt: skip
    assert 0.9 * budget < results["bytes"]["packed"] <= budget


@pytest.mark.parametrize(
    "overrides",
    [
        (*LSQ, "quantization.budget=6 apples"),
        (*LSQ, "quantization.budget=0MiB"),
        (*LSQ, "quantization.budget=6MiB", "quantization.bits={layers.*: 3}"),
        (*LSQ, "quantization.budget=6MiB", "quantization.budget_widths=[2,9]"),
    ],
)
def test_a_wrong_budget_is_refused(overrides: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"quantization\.budget"):
        composed(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [(*LSQ, "quantization.budget=100B"), (*LSQ, "quantization.budget=1bits"), ("quantization.budget=6MiB",)],
)
def test_a_budget_that_cannot_be_met_is_refused_before_training(overrides: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"quantization\.budget"):
        small_run(tmp_path, *overrides)
    assert not (tmp_path / "config.yaml").exists()
