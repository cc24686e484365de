"""Two processes are one process with the double batch."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.runs import SMALL

ROOT = Path(__file__).parents[2]
# Static scales: a sample's result does not depend on its batch. Dropout is drawn by each process, so it is off. Images:
# no padding, so the mean over two halves is the mean over the whole. Stages and epochs end within a batch.
EQUAL = (
    "model=vit_digits",
    "data=digits",
    "data.train_limit=100",
    "data.validation_limit=51",
    "quantization.activation.scale=static",
    "+model.architecture.hidden_dropout_prob=0.0",
    "+model.architecture.attention_probs_dropout_prob=0.0",
    "model.architecture.num_hidden_layers=2",
)
TWO = ("trainer.devices=2", "trainer.strategy=ddp")


def command_line_run(folder: Path, *overrides: str) -> dict[str, list[dict[str, float]]]:
    """The logged losses of each stage."""
    common = [override for override in SMALL if not override.startswith(("model", "data"))]
    command = [sys.executable, "-m", "qat_lightning", *common, *EQUAL, f"hydra.run.dir={folder}", *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    return {stage: losses(folder, stage) for stage in ("teacher", "intervene", "train")}


def losses(folder: Path, stage: str) -> list[dict[str, float]]:
    rows = list(csv.DictReader((folder / "logs" / stage / "metrics.csv").open()))
    return [
        {name: float(value) for name, value in row.items() if name.startswith("train/")}
        for row in rows
        if row["train/loss"]
    ]


# In float32 the two agree to 1e-6 until the first value that lies on the border between two codes falls to the other
# side; that moves single terms by more, the curve of the whole loss hardly. In float64 no value does within these steps.
@pytest.mark.parametrize(
    ("precision", "watched", "tolerance"), [("64-true", None, 1e-9), ("32-true", "train/loss", 1e-4)]
)
def test_loss_curve_of_two_processes_is_that_of_one_with_the_double_batch(tmp_path, precision, watched, tolerance):
    common = (f"trainer.precision={precision}", "optimizer.lr=1e-4")
    one = command_line_run(tmp_path / "one", "data.batch_size=20", *common)
    two = command_line_run(tmp_path / "two", "data.batch_size=10", *common, *TWO)
    assert {stage: len(rows) for stage, rows in one.items()} == {"teacher": 4, "intervene": 6, "train": 8}
    for stage, rows in one.items():
        for step, (alone, together) in enumerate(zip(rows, two[stage], strict=True)):
            for name in alone if watched is None else [watched]:
                assert together[name] == pytest.approx(alone[name], rel=tolerance, abs=tolerance), (
                    f"{stage} {step} {name}"
                )
    scores = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert scores[0]["teacher"] == scores[1]["teacher"], "each validation row is counted once"
