"""The processes of one run, and their loader workers, end together; each process knows its rank."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only

from qat_lightning.commands.errors import exit_on_error
from qat_lightning.commands.train import process_rank
from qat_lightning.config.schema import ConfigError, RunConfig, TrainerConfig
from qat_lightning.data import loader_workers
from qat_lightning.data.loader_workers import loading_context
from qat_lightning.training.process import supervision, watchdog
from qat_lightning.training.process.supervision import FIRST, end_started_processes, watch_processes
from tests.command_line import fresh
from tests.forks import exit_code
from tests.training.runs import SMALL, composed

# --- the first process has died -------------------------------------------------------------------------------------


@pytest.fixture
def second_process(monkeypatch):
    """Set the environment of a second process that Lightning starts, whose first process has died."""
    gone = os.fork()
    if not gone:
        os._exit(0)
    os.waitpid(gone, 0)
    for name in ("RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv(FIRST, str(gone))
    return gone


@pytest.mark.usefixtures("second_process")
def test_a_process_that_starts_too_late_ends_with_a_message(capsys):
    with pytest.raises(SystemExit) as ended:
        watch_processes()
    assert ended.value.code == 1
    assert supervision.FIRST_DIED in capsys.readouterr().err


@pytest.mark.usefixtures("second_process")
def test_a_process_watches_the_one_that_started_it(monkeypatch):
    def child():
        monkeypatch.setattr(supervision, "GRACE", 0.0)
        first = os.getpid()
        if os.fork():
            time.sleep(0.3)
            os.kill(first, signal.SIGKILL)
        os.setsid()
        os.environ[FIRST] = str(first)
        watch_processes()
        watch_processes()
        assert [thread.name for thread in threading.enumerate()].count(FIRST) == 1
        time.sleep(20)

    out, into = os.pipe()  # the grandchild holds it until it ends
    assert exit_code(child) == -signal.SIGKILL
    os.close(into)
    start = time.monotonic()
    assert os.read(out, 1) == b""
    assert time.monotonic() - start < 10


@pytest.mark.usefixtures("second_process")
@pytest.mark.parametrize(("name", "value"), [("TORCHELASTIC_RUN_ID", "x"), ("LOCAL_RANK", "0")])
def test_processes_of_torchrun_and_first_processes_watch_no_other(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    watch_processes()
    assert os.environ[FIRST] == str(os.getpid()), "the processes that it starts will watch it"


@pytest.mark.slow
def test_a_process_whose_first_one_is_killed_during_imports_ends_with_a_message(tmp_path):
    orphan = (
        "import os, signal, subprocess, sys\n"
        'os.environ |= {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}\n'
        f'os.environ["{FIRST}"] = str(os.getpid())\n'
        'subprocess.Popen([sys.executable, "-m", "qat_lightning", *sys.argv[1:]])\n'
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    words = (*SMALL, "trainer.devices=2", "trainer.strategy=ddp", "hydra.run.dir=run")
    ended = fresh(tmp_path, "-c", orphan, *words)
    assert ended.returncode == -signal.SIGKILL
    assert supervision.FIRST_DIED in ended.stderr, "printed by the second process, whose stream was read to its end"


@pytest.mark.parametrize("reader", ["gone", "asleep"])
def test_a_process_ends_where_nobody_reads_its_message(monkeypatch, second_process, reader):
    monkeypatch.setattr(supervision, "PRINTING", 0.5)
    monkeypatch.setattr(supervision, "GRACE", 0.0)
    monkeypatch.setattr(os, "getppid", lambda parents=[second_process]: parents.pop() if parents else 1)
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
        watch_processes()
        time.sleep(20)

    assert exit_code(second) == 1
    os.close(out)
    os.close(into)


def test_processes_of_a_failed_job_are_ended_and_no_longer_observed():
    class Observer(threading.Thread):
        """Lightning's observer, with the processes that it has started."""

        def __init__(self, processes):
            super().__init__(name="child-process-observer", daemon=True)
            self._child_processes, self.stop = processes, threading.Event()

        def run(self):
            self.stop.wait()

    process = subprocess.Popen(["sleep", "60"])
    observer = Observer([process])
    observer.start()
    end_started_processes()
    observer.stop.set()
    assert process.returncode == -signal.SIGKILL
    assert observer._child_processes == []


# --- ranks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def _no_launcher(monkeypatch):
    """Remove the variables of all launchers, and set a wrong first guess of Lightning's."""
    launchers = ("SLURM", "TORCHELASTIC", "MASTER", "JSM")
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE")
    for name in [name for name in os.environ if name.startswith(launchers) or name in names]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(rank_zero_only, "rank", 1)


ADDRESS = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
SRUN = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "2", "LOCAL_RANK": "0"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1", "WORLD_SIZE": "4"}
RANKS = [  # nodes, devices, environment, rank
    (2, 2, {}, 0),
    (2, 2, {"LOCAL_RANK": "1"} | ADDRESS, 1),
    (2, 2, {"NODE_RANK": "1"} | ADDRESS, 2),
    (2, 2, {"NODE_RANK": "1", "LOCAL_RANK": "1"} | ADDRESS, 3),
    (2, 2, {"GROUP_RANK": "1"}, 2),
    (2, 2, SRUN, 2),
    (2, 2, SRUN | {"SLURM_JOB_NAME": "bash"} | ADDRESS, 0),
    (2, 2, TORCHRUN, 3),
    # variables that no launcher of this process has set
    (1, 1, {"RANK": "1"}, 0),
    (1, 1, {"LOCAL_RANK": "0"}, 0),
    (1, 1, {"WORLD_SIZE": "4"}, 0),
    (1, 1, {"SLURM_PROCID": "1"}, 0),
    (1, 1, {"JSM_NAMESPACE_RANK": "1"}, 0),
    (1, 1, {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "interactive"}, 0),
]
WRONG_RANKS = [  # devices, environment, named
    (1, {"LOCAL_RANK": "1"}, "LOCAL_RANK=1"),
    (1, {"NODE_RANK": "1"}, "NODE_RANK=1"),
    (2, {"GROUP_RANK": "2"}, "GROUP_RANK=2"),
    (2, {"LOCAL_RANK": "0"}, "without MASTER_ADDR and MASTER_PORT"),
    (2, {"LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}, "without MASTER_ADDR and MASTER_PORT"),
    (1, {"LOCAL_RANK": "one"}, "LOCAL_RANK='one'"),
    (1, {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "1"}, "SLURM_PROCID=1 SLURM_NTASKS=2"),
    (1, {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, "without SLURM_NTASKS_PER_NODE"),
    (2, {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4"}, "SLURM_NTASKS=4"),
    (1, {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2"}, "RANK=1 WORLD_SIZE=2"),
    (2, {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "4"}, "WORLD_SIZE=4"),
]


def set_rank(nodes, devices):
    find = getattr(process_rank, "set_process_rank", None) or process_rank.know_the_rank
    find(RunConfig(trainer=TrainerConfig(num_nodes=nodes, devices=devices)))


@pytest.mark.usefixtures("_no_launcher")
@pytest.mark.parametrize(("nodes", "devices", "environment", "rank"), RANKS)
def test_the_launcher_decides_the_rank(monkeypatch, nodes, devices, environment, rank):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    set_rank(nodes, devices)
    assert rank_zero_only.rank == rank
    assert process_rank.first_process() is (rank == 0)


@pytest.mark.usefixtures("_no_launcher")
@pytest.mark.parametrize(("devices", "environment", "named"), WRONG_RANKS)
def test_a_rank_outside_of_the_run_is_refused(monkeypatch, devices, environment, named):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=re.escape(named)):
        set_rank(1, devices)


def test_a_strategy_that_starts_processes_within_training_is_refused():
    for name in ("ddp_spawn", "ddp_fork", "ddp_notebook", "ddp_spawn_find_unused_parameters_true"):
        with pytest.raises(ConfigError, match=f"trainer.strategy={name}"):
            composed(f"trainer.strategy={name}")


# --- loader workers -------------------------------------------------------------------------------------------------


def ignore_sigterm_and_sleep() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, 1), (signal.SIGTERM, 7), (None, 7)])
def test_an_unnoticed_death_of_a_loader_worker_ends_the_process(monkeypatch, capfd, how, code):
    """The exception of torch's handler can be lost, and no handler runs in a call that waits."""
    monkeypatch.setattr(watchdog, "WORKER_PATIENCE", 0.1)

    def waiting():
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with watchdog.Watchdog():
            worker = loading_context(1).Process(target=time.sleep, args=(0.1 if how is None else 30,), daemon=True)
            worker.start()
            if how is not None:
                os.kill(worker.pid, how)
            end = time.monotonic() + 0.8
            while time.monotonic() < end:
                time.sleep(0.05)

    assert exit_code(waiting) == code
    assert ("data.num_workers" in capfd.readouterr().err) is (code == 1)


def test_a_loader_worker_ends_after_the_process_that_started_it(monkeypatch):
    monkeypatch.setattr(loader_workers, "WATCH", 0.1)
    out, into = os.pipe()  # the worker holds it until it ends

    def killed():
        loading_context(1).Process(target=ignore_sigterm_and_sleep, daemon=True).start()
        os.kill(os.getpid(), signal.SIGKILL)

    assert exit_code(killed) == -signal.SIGKILL
    os.close(into)
    start = time.monotonic()
    assert os.read(out, 1) == b""
    assert time.monotonic() - start < 10


def test_no_loader_worker_is_left_after_an_error(capsys):
    """Python waits for each of its children at exit, and one that waits for a lock may ignore signals."""

    def torchs_handler(number, frame):
        raise RuntimeError("DataLoader worker (pid 6) is killed by signal: Killed. ")

    before = signal.signal(signal.SIGCHLD, torchs_handler)
    workers = [
        multiprocessing.get_context("fork").Process(target=ignore_sigterm_and_sleep, daemon=True) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    with pytest.raises(SystemExit) as ended, exit_on_error():
        raise RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed. ")
    assert signal.signal(signal.SIGCHLD, before) is torchs_handler, "the next job of a sweep needs it"
    assert ended.value.code == 1
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL] * 3
    assert "data.num_workers" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(4))
def test_a_killed_loader_worker_ends_the_run_in_bounded_time(tmp_path, attempt):
    long = ("stages.teacher.max_steps=2", "stages.train.max_steps=100000", "stages.train.checkpoint_every=5")
    with (tmp_path / "output").open("w") as output:
        run = subprocess.Popen(
            [sys.executable, "-m", "qat_lightning", *SMALL, *long, "data.num_workers=2", "hydra.run.dir=run"],
            stdout=output, stderr=output, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        )  # fmt: skip
        while not (tmp_path / "run" / "checkpoints" / "train" / "last.ckpt").is_file() and run.poll() is None:
            time.sleep(0.05)
        time.sleep(0.2 * attempt)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        os.kill(int(children[attempt % 2]), signal.SIGKILL)  # the oldest load training batches
        assert run.wait(90) == 1
    assert "data.num_workers" in (tmp_path / "output").read_text()
