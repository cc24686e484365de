"""`gate`: a run that misses a limit keeps its results and ends with exit code 1."""

import json

import pytest

from qat_lightning.commands.train.gate import GateError, layer_outputs
from qat_lightning.config.schema import ConfigError
from tests.command_line import call
from tests.training.runs import SMALL, composed, small_run

LARGE = ("gate.metric_drop=1", "gate.agreement=0", "gate.bytes=1GiB")


def test_a_student_within_the_limits_passes(tmp_path):
    results = small_run(tmp_path, *LARGE)
    assert results["status"] == "finished"
    limits = json.loads((tmp_path / "metrics.json").read_text())["gate"]["limits"]
    assert limits["metric_drop"]["value"] == pytest.approx(results["teacher"] - results["student"])
    assert 0 <= limits["agreement"]["value"] <= 1
    assert limits["bytes"] == {"limit": 2**30, "value": results["bytes"]["packed"], "missed": False}
    assert "## Quality gate" in (tmp_path / "report.md").read_text()
    with pytest.raises(
        GateError, match=r"gate\.bytes=1KB, but the student has \d+ \(.* too much\); the outputs .* layer \d"
    ):
        small_run(tmp_path, *LARGE[:2], "gate.bytes=1KB")  # the stages are finished and not run again


def test_a_missed_gate_keeps_everything_and_ends_with_exit_code_1(tmp_path):
    short = ("stages.teacher.max_steps=1", "stages.intervene.max_steps=1", "stages.train.max_steps=1")
    ended = call(tmp_path, *SMALL, *short, "gate.bytes=1KB", "hydra.run.dir=run")
    assert ended.returncode == 1, ended.stderr
    assert "misses the gate: gate.bytes=1KB" in ended.stderr
    assert "continues" not in ended.stderr
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert results["status"] == "gate missed"
    assert len(results["gate"]["layers"]) == 3
    assert "The student misses the gate" in (tmp_path / "run" / "report.md").read_text()
    assert (tmp_path / "run" / "export" / "packed").is_dir()


def test_models_of_different_shape_name_no_layer():
    assert layer_outputs({"teacher": {"hidden": []}}, {}) == {}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("gate.bytes=8", "gate.bytes='8' must be a size"),
        ("gate.bytes=2bits", "gate.bytes='2bits'"),
        ("gate.agreement=1.5", "gate.agreement=1.5"),
        ("gate.metric_drop=-1", "gate.metric_drop=-1"),
    ],
)
def test_limits_are_checked_before_the_run(word, message):
    with pytest.raises(ConfigError, match=message):
        composed(word)


def test_agreement_is_for_classes():
    with pytest.raises(ConfigError, match="is a regression"):
        composed("gate.agreement=0.9", "data.num_labels=1")
