"""Two processes are one process with the double batch."""

import csv
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only

from qat_lightning.commands.errors import mistakes_in_words
from qat_lightning.commands.train.process_rank import first_process, know_the_rank
from qat_lightning.config.schema import ConfigError, RunConfig, TrainerConfig
from qat_lightning.data import loader_workers
from qat_lightning.data.loader_workers import loading_context
from qat_lightning.training.process import supervision, watchdog
from qat_lightning.training.process.supervision import FIRST, leave_the_others, watch_the_others
from tests.training.runs import SMALL, composed

ROOT = Path(__file__).parents[3]
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
    monkeypatch.setattr(supervision, "_end_with", lambda first, grace: (watched.append(first), over.wait()))
    monkeypatch.setenv(FIRST, str(os.getppid()))
    watch_the_others()
    watch_the_others()
    over.set()
    for name, value in (
        ("TORCHELASTIC_RUN_ID", "x"),
        ("LOCAL_RANK", "0"),
    ):  # torchrun's to look after; the first of this machine
        monkeypatch.setenv(FIRST, "1")
        monkeypatch.setenv(name, value)
        watch_the_others()
        assert os.environ[FIRST] == str(os.getpid()), "what it starts will watch it"
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
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


@pytest.fixture
def _no_launcher(monkeypatch):
    """An environment without the variables of any launcher, and a wrong first guess of Lightning's."""
    left = (
        "RANK",
        "LOCAL_RANK",
        "NODE_RANK",
        "GROUP_RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "JSM_NAMESPACE_RANK",
    )
    for name in [name for name in os.environ if name.startswith(("SLURM", "TORCHELASTIC"))] + [*left]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rank_zero_only, "rank", 1)


BY_HAND = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
SRUN = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "2", "LOCAL_RANK": "0"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1", "WORLD_SIZE": "4"}


@pytest.mark.usefixtures("_no_launcher")
@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"LOCAL_RANK": "1"} | BY_HAND, 1),
        ({"NODE_RANK": "1"} | BY_HAND, 2),
        ({"NODE_RANK": "1", "LOCAL_RANK": "1"} | BY_HAND, 3),
        ({"GROUP_RANK": "1"}, 2),
        (SRUN, 2),
        (SRUN | {"SLURM_JOB_NAME": "bash"} | BY_HAND, 0),
        (TORCHRUN, 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else str(value),
)
def test_of_two_machines_one_has_the_first_process(monkeypatch, environment, rank):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    know_the_rank(RunConfig(trainer=TrainerConfig(num_nodes=2, devices=2)))
    assert rank_zero_only.rank == rank
    assert first_process() is (rank == 0)


@pytest.mark.usefixtures("_no_launcher")
@pytest.mark.parametrize(
    ("environment", "devices", "named"),
    [
        ({"LOCAL_RANK": "1"}, 1, "LOCAL_RANK=1"),
        ({"NODE_RANK": "1"}, 1, "NODE_RANK=1"),
        ({"GROUP_RANK": "2"}, 2, "GROUP_RANK=2"),
        ({"LOCAL_RANK": "0"}, 2, "without MASTER_ADDR and MASTER_PORT"),
        ({"LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}, 2, "without MASTER_ADDR and MASTER_PORT"),
        ({"LOCAL_RANK": "one"}, 1, "LOCAL_RANK='one'"),
        ({"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "1"}, 1, "SLURM_PROCID=1 SLURM_NTASKS=2"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, 1, "without SLURM_NTASKS_PER_NODE"),
        ({"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4"}, 2, "SLURM_NTASKS=4"),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2"}, 1, "RANK=1 WORLD_SIZE=2"),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "4"}, 2, "WORLD_SIZE=4"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else str(value),
)
def test_a_process_that_the_run_does_not_have_is_refused(monkeypatch, environment, devices, named):
    """Before, most of these ended with exit code 0 and no result, or waited half an hour for others."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=re.escape(named)) as refused:
        know_the_rank(RunConfig(trainer=TrainerConfig(num_nodes=1, devices=devices)))
    assert "unset" in str(refused.value)


@pytest.mark.usefixtures("_no_launcher")
@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "1"},
        {"LOCAL_RANK": "0"},
        {"WORLD_SIZE": "4"},
        {"SLURM_PROCID": "1"},
        {"JSM_NAMESPACE_RANK": "1"},
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "interactive"},
    ],
    ids=" ".join,
)
def test_what_no_launcher_of_this_process_has_set_is_ignored(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    know_the_rank(RunConfig(trainer=TrainerConfig(num_nodes=1, devices=1)))
    assert first_process()


@pytest.mark.parametrize("name", ["ddp_spawn", "ddp_fork", "ddp_notebook", "ddp_spawn_find_unused_parameters_true"])
def test_a_strategy_that_starts_processes_within_training_is_refused(name):
    with pytest.raises(ConfigError, match=f"trainer.strategy={name} starts its processes .* Set trainer.strategy=ddp"):
        composed(f"trainer.strategy={name}")


def ended(child: Callable[[], None], seconds: float) -> int:
    """The exit code of a forked process that runs `child`; 7 where that comes back."""
    process = os.fork()
    if not process:
        with suppress(BaseException):
            child()
        os._exit(7)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    pytest.fail("it has not ended")


@pytest.mark.parametrize("reader", ["gone", "asleep"])
def test_a_process_whose_first_one_has_gone_ends_where_nobody_reads_why(monkeypatch, reader):
    monkeypatch.setattr(supervision, "PRINTING", 0.5)
    gone = os.fork()
    if not gone:
        os._exit(0)
    os.waitpid(gone, 0)
    out, into = os.pipe()

    def second():
        if reader == "gone":
            os.close(out)
        else:
            os.set_blocking(into, False)
            with suppress(BlockingIOError):
                while os.write(into, b"x" * 65536):
                    pass
            os.set_blocking(into, True)
        sys.stderr = open(into, "w")  # noqa: SIM115
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        threading.Thread(target=supervision._end_with, args=(gone, 0.0)).start()
        time.sleep(20)

    assert ended(second, 15) == 1
    os.close(out)
    os.close(into)


def test_another_process_with_the_number_of_the_first_one_is_not_the_first_one():
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    born = supervision._facts(other.pid)[19]
    assert supervision._is_there(os.getppid(), "0"), "a parent is there"
    process = os.fork()
    if not process:  # to which the other one is no parent
        os._exit(10 * supervision._is_there(other.pid, born) + supervision._is_there(other.pid, "0"))
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 10
    other.kill()
    other.wait()


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, 1), (signal.SIGTERM, 7), (None, 7)])
def test_the_death_of_a_loading_process_ends_a_process_that_does_not_notice_it(monkeypatch, capfd, how, code):
    """What torch's handler raises can be lost, and no handler runs in a call of the system that waits."""
    monkeypatch.setattr(watchdog, "WORKER", 0.2)

    def waiting():
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with watchdog.Watchdog():
            worker = loading_context(1).Process(target=time.sleep, args=(0.3 if how is None else 30,), daemon=True)
            worker.start()
            multiprocessing.get_context("fork").Process(target=time.sleep, args=(0.1,), daemon=True).start()
            if how is not None:
                os.kill(worker.pid, how)
            end = time.monotonic() + 2
            while time.monotonic() < end:
                time.sleep(0.1)

    assert ended(waiting, 15) == code
    assert ("a process that loads data has died" in capfd.readouterr().err) is (code == 1)


def test_a_loading_process_ends_after_the_one_that_started_it_was_killed(monkeypatch):
    monkeypatch.setattr(loader_workers, "WATCH", 0.1)
    out, into = os.pipe()

    def killed():
        loading = loading_context(1).Process(target=stubborn, daemon=True)
        loading.start()
        os.write(into, str(loading.pid).encode())
        os.kill(os.getpid(), signal.SIGKILL)

    assert ended(killed, 15) == -signal.SIGKILL
    loading = int(os.read(out, 20))
    end = time.monotonic() + 10
    while supervision._is_there(loading):
        assert time.monotonic() < end, "it is an orphan"
        time.sleep(0.05)


def stubborn() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)


def test_no_loading_process_is_left_to_wait_for_after_a_message(capsys):
    """Python waits at its exit for each that it has started, after a signal that one which waits for a lock may not obey."""

    def raising(number, frame):
        raise RuntimeError("DataLoader worker (pid 6) is killed by signal: Killed. ")

    before = signal.signal(signal.SIGCHLD, raising)  # as torch does
    started = [multiprocessing.get_context("fork").Process(target=stubborn, daemon=True) for _ in range(3)]
    for worker in started:
        worker.start()
    with pytest.raises(SystemExit) as ended, mistakes_in_words():
        raise RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed. ")
    assert signal.signal(signal.SIGCHLD, before) is raising, "the next job of a sweep has it again"
    assert ended.value.code == 1
    assert [worker.exitcode for worker in started] == [-signal.SIGKILL] * 3
    assert "a process that loads data has died" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(4))
def test_a_killed_loading_process_ends_the_run_in_bounded_time(tmp_path, attempt):
    """Before: 9 of 14 tries waited for ever after the message."""
    long = ("stages.teacher.max_steps=2", "stages.train.max_steps=100000", "stages.train.checkpoint_every=5")
    with (tmp_path / "said").open("w") as said:
        run = subprocess.Popen(
            [sys.executable, "-m", "qat_lightning", *SMALL, *long, "data.num_workers=2", "hydra.run.dir=run"],
            stdout=said, stderr=said, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        while not (tmp_path / "run" / "checkpoints" / "train" / "last.ckpt").is_file() and run.poll() is None:
            time.sleep(0.05)
        time.sleep(0.2 * attempt)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        os.kill(int(children[attempt % 2]), signal.SIGKILL)  # the oldest load what is trained on
        assert run.wait(90) == 1
    assert "a process that loads data has died" in (tmp_path / "said").read_text()
