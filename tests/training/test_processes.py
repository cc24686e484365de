"""Two processes are one process with the double batch."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only

from qat_lightning.run.stages import first_process, know_the_rank
from qat_lightning.training import processes
from qat_lightning.training.processes import FIRST, leave_the_others, watch_the_others
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


@pytest.fixture
def _second(monkeypatch):
    """As Lightning starts a second process."""
    for name in ("RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")


@pytest.mark.usefixtures("_second")
@pytest.mark.parametrize("asked_for", [True, False])
def test_a_process_whose_first_one_has_gone_ends_in_words(monkeypatch, capsys, asked_for):
    first = os.fork()
    if not first:
        os._exit(0)
    os.waitid(os.P_PID, first, os.WEXITED | (0 if asked_for else os.WNOWAIT))  # dead, or dead and not yet buried
    monkeypatch.setenv(FIRST, str(first))
    with pytest.raises(SystemExit) as ended:
        watch_the_others()
    assert ended.value.code == 1
    assert "the first process of this run has gone" in capsys.readouterr().err
    if not asked_for:
        os.waitpid(first, 0)


@pytest.mark.usefixtures("_second")
def test_a_process_watches_the_one_that_started_it_and_only_that(monkeypatch):
    watched, over = [], threading.Event()
    monkeypatch.setattr(processes, "_end_with", lambda first, grace: (watched.append(first), over.wait()))
    monkeypatch.setenv(FIRST, str(os.getppid()))
    watch_the_others()
    watch_the_others()
    over.set()
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "0")):  # torchrun's to look after; the first of this machine
        monkeypatch.setenv(FIRST, "1")
        monkeypatch.setenv(name, value)
        watch_the_others()
        assert os.environ[FIRST] == str(os.getpid()), "what it starts will watch it"
        monkeypatch.delenv("RANK", raising=False)
    assert watched == [os.getppid()]


ORPHAN = """
import os, signal, subprocess, sys
os.environ |= {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
os.environ["QAT_LIGHTNING_FIRST_PROCESS"] = str(os.getpid())
subprocess.Popen([sys.executable, "-m", "qat_lightning", *sys.argv[1:]])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_whose_first_one_is_killed_while_it_imports_ends_in_words(tmp_path):
    two = ("trainer.devices=2", "trainer.strategy=ddp", "hydra.run.dir=run")
    start = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", ORPHAN, *SMALL, *two], capture_output=True, text=True, timeout=120, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}, check=False,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL
    assert "the first process of this run has gone" in ended.stderr, "told by the second, whose stream was waited for"
    assert time.monotonic() - start < 100


class Observer(threading.Thread):
    """As Lightning's, with the processes that it has started."""

    def __init__(self, processes):
        super().__init__(name="child-process-observer", daemon=True)
        self._child_processes, self.through = processes, threading.Event()

    def run(self):
        self.through.wait()


def test_the_processes_of_a_failed_job_are_ended_and_no_more_observed():
    process = subprocess.Popen(["sleep", "60"])
    observer = Observer([process])
    observer.start()
    leave_the_others()
    observer.through.set()
    assert process.returncode == -signal.SIGKILL
    assert observer._child_processes == []


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"LOCAL_RANK": "1"}, 1),
        ({"NODE_RANK": "1"}, 2),
        ({"NODE_RANK": "1", "LOCAL_RANK": "1"}, 3),
        ({"GROUP_RANK": "1"}, 2),
        ({"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "2", "LOCAL_RANK": "0"}, 2),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_JOB_NAME": "bash"}, 0),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1"}, 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else str(value),
)
def test_of_two_machines_one_has_the_first_process(monkeypatch, environment, rank):
    for name in [name for name in os.environ if name.startswith("SLURM")] + ["RANK", "LOCAL_RANK", "NODE_RANK"]:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    know_the_rank({"trainer": {"num_nodes": 1, "devices": 2}})
    assert rank_zero_only.rank == 0, "Lightning's own guess holds on one machine"
    know_the_rank({"trainer": {"num_nodes": 2, "devices": 2}})
    assert rank_zero_only.rank == rank
    assert first_process() is (rank == 0)
