"""Two processes train as one process with the double batch, and a signal to one of them stops both."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    ended = subprocess.run(
        [sys.executable, "-m", "tests.training.process.forked_runs", folder], capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-4000:]
    return folder


def losses(folder):
    """Return the logged losses of each stage and step."""
    logged = {}
    for stage in ("teacher", "intervene", "train"):
        rows = csv.DictReader((folder / "logs" / stage / "metrics.csv").open())
        logged[stage] = [
            {name: float(value) for name, value in row.items() if name.startswith("train/")}
            for row in rows
            if row["train/loss"]
        ]
    return logged


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_losses_of_two_processes_are_those_of_one_with_the_double_batch(runs):
    one, two = losses(runs / "one"), losses(runs / "two")
    assert {stage: len(rows) for stage, rows in one.items()} == {"teacher": 4, "intervene": 6, "train": 4}
    for stage, rows in one.items():
        for alone, together in zip(rows, two[stage], strict=True):
            assert together == pytest.approx(alone, rel=1e-9, abs=1e-9)
    assert metrics(runs / "one")["teacher"] == metrics(runs / "two")["teacher"], "each validation row is counted once"


def test_a_signal_to_one_process_stops_both_after_the_same_step(runs):
    """The signalled process is the second. Only the first ends with the signal's code, so that Lightning kills none."""
    codes = json.loads((runs / "codes.json").read_text())
    assert codes == {"one": [0], "two": [0, 0], "stopped": [143, 0], "continued": [0, 0]}
    stopped, undisturbed = metrics(runs / "stopped"), metrics(runs / "two")
    assert stopped["student_hash"] == undisturbed["student_hash"]
    assert len(stopped["student_hash"]) == 64
