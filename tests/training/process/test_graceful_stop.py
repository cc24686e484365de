"""Asked to stop, a run finishes its batch, writes a checkpoint and ends in words; the same command goes on."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from qat_lightning.config.builders.training import build_trainer
from qat_lightning.training.checkpoints.callbacks import ResumeCheckpoint, resume_point
from qat_lightning.training.module import QATModule
from qat_lightning.training.process.graceful_stop import ASKING, StoppedBySignal, Stopping, leave_signals_alone
from qat_lightning.training.process.watchdog import Watchdog
from tests.forks import check_outlives_one_signal_and_no_second, forked_sleeper
from tests.training.checkpoints.killing import killed
from tests.training.runs import SMALL, composed, small_run

ROOT = Path(__file__).parents[3]


class Asked(LightningModule):
    """One weight that follows its batches; sends itself a signal in a training or in a validation batch."""

    def __init__(self, number=signal.SIGTERM, training=None, validation=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.number, self.training_batch, self.validation_batch = number, training, validation
        self.seen = {"training": 0, "validation": 0}

    def ask(self, kind, at):
        self.seen[kind] += 1
        if self.seen[kind] == at:
            os.kill(os.getpid(), self.number)

    def training_step(self, batch, index):
        self.ask("training", self.training_batch)
        return (self.weight * batch).sum()

    def validation_step(self, batch, index):
        self.ask("validation", self.validation_batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, module, **settings):
    """At most 12 steps, a validation of two batches every 4 training batches, no checkpoint in between."""
    stopping = Stopping()
    trainer = Trainer(
        max_steps=12, max_epochs=-1, val_check_interval=4, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        callbacks=[ResumeCheckpoint(folder / "last.ckpt", 100, stopping=stopping)], default_root_dir=folder, **settings,
    )  # fmt: skip
    with stopping:
        leave_signals_alone(trainer).fit(module, DataLoader(torch.arange(48.0)), DataLoader(torch.arange(2.0)))
    return trainer


def written(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)["global_step"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_ends_the_run_after_the_batch_with_a_checkpoint(tmp_path, name):
    number = getattr(signal, name)
    before = {each: signal.getsignal(each) for each in ASKING}
    module = Asked(number, training=3)
    with pytest.raises(StoppedBySignal) as ended:
        fit(tmp_path, module)
    assert ended.value.code == 128 + number
    assert (ended.value.name, ended.value.step) == (name, 3)
    assert (module.seen["training"], written(tmp_path)) == (3, 3)
    assert {each: signal.getsignal(each) for each in ASKING} == before


def test_a_validation_that_follows_is_finished_first(tmp_path):
    for module in (Asked(training=4), Asked(validation=1)):
        with pytest.raises(StoppedBySignal) as ended:
            fit(tmp_path, module)
        assert ended.value.step == written(tmp_path) == 4
        assert module.seen == {"training": 4, "validation": 2}


def test_accumulated_batches_are_finished_first(tmp_path):
    module = Asked(training=5)
    with pytest.raises(StoppedBySignal) as ended:
        fit(tmp_path, module, accumulate_grad_batches=3)
    assert ended.value.step == written(tmp_path) == 2
    assert module.seen["training"] == 6


def test_a_signal_in_the_last_batch_is_heeded(tmp_path):
    with pytest.raises(StoppedBySignal) as ended:
        fit(tmp_path, Asked(training=12))
    assert ended.value.step == written(tmp_path) == 12


def test_a_signal_after_the_training_does_what_it_always_does(tmp_path):
    """An analysis at the end of a stage is not waited for."""
    seen, module = [], Asked()
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    module.on_fit_end = lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0.01), seen.append("analysis"))
    try:
        fit(tmp_path, module)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM, "analysis"]


def test_without_a_signal_nothing_ends(tmp_path):
    assert fit(tmp_path, Asked()).global_step == 12


def test_trainers_of_a_run_have_no_handlers_of_lightning(tmp_path):
    """Its SIGTERM would end a run with exit code 0 and no checkpoint."""
    before = {number: signal.getsignal(number) for number in ASKING}
    trainer = build_trainer(composed(), "teacher", 1, tmp_path, record=False)
    trainer._signal_connector.register_signal_handlers()
    assert {number: signal.getsignal(number) for number in ASKING} == before


def test_a_signal_before_the_first_step_does_what_it_always_does(tmp_path):
    """The processes of a run may wait for each other then, and there is nothing to save."""
    module, seen = Asked(), []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    module.setup = lambda stage: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0.01), seen.append("setup"))
    try:
        assert fit(tmp_path, module).global_step == 12
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM, "setup"]


def test_the_first_signal_decides_and_a_second_interrupt_ends_at_once():
    child = os.fork()
    if not child:
        with Stopping() as stopping:
            stopping.begin()
            for number in (signal.SIGTERM, signal.SIGUSR1):
                os.kill(os.getpid(), number)
                time.sleep(0.01)
            if stopping.signal == signal.SIGTERM:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGINT


def wait_for_ever(watchdog):
    """In one call, as for a process that never answers: no handler of Python's runs."""
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


def ended(signals, patience=60.0, echo=5.0, pause=0.3, wait=wait_for_ever):
    """The exit code of a process that waits, and how long it was there after the first of its signals."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            with Watchdog(patience, echo) as watchdog:
                os.write(writer, b"x")
                wait(watchdog)
            code = 7
        finally:
            os._exit(code)
    os.read(reader, 1)
    time.sleep(0.1)
    start = time.monotonic()
    for number in signals:
        os.kill(child, number)
        time.sleep(pause)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(reader)
    os.close(writer)
    return code, time.monotonic() - start


@pytest.fixture
def _heeded():
    """Handlers of Python's, as the command line has them: without one the system ends a process by itself."""
    before = {number: signal.signal(number, lambda number, frame: None) for number in ASKING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_heeded")
@pytest.mark.parametrize("number", ASKING)
def test_a_process_that_waits_for_ever_ends_some_seconds_after_a_signal(number, capfd):
    code, seconds = ended([number], patience=0.5)
    assert code == 128 + number
    assert 0.5 <= seconds < 5
    assert f"still in the same call ({signal.Signals(number).name})" in capfd.readouterr().err


@pytest.mark.usefixtures("_heeded")
def test_a_process_that_waits_for_ever_ends_at_a_second_signal_that_is_no_echo(capfd):
    code, seconds = ended([signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM], echo=0.5, pause=0.3)
    assert code == 128 + signal.SIGTERM
    assert 0.6 <= seconds < 5
    assert "asked once more to stop (SIGTERM)" in capfd.readouterr().err
    code, seconds = ended([signal.SIGTERM, signal.SIGINT], pause=0.01)
    assert code == 128 + signal.SIGINT
    assert seconds < 5


@pytest.mark.usefixtures("_heeded")
def test_a_signal_that_is_heeded_ends_no_long_validation():
    def validate(watchdog):
        signal.signal(signal.SIGTERM, lambda number, frame: watchdog.heeded())
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            time.sleep(0.05)

    assert ended([signal.SIGTERM], patience=0.4, wait=validate)[0] == 7


@pytest.mark.usefixtures("_heeded")
def test_a_signal_to_a_process_that_loads_data_is_none_to_the_one_that_trains():
    def train(watchdog):
        worker = forked_sleeper()
        time.sleep(0.1)
        for number in (signal.SIGINT, signal.SIGINT):
            os.kill(worker, number)
            time.sleep(0.05)
        time.sleep(0.6)
        os.kill(worker, signal.SIGKILL)

    assert ended([], patience=0.2, wait=train)[0] == 7


def heed_one():
    with Stopping() as stopping:
        stopping.begin()
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.01)
        raise StoppedBySignal(stopping.signal, 1)


def test_a_signal_that_nobody_stopped_for_is_sent_again():
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        with Stopping() as stopping:
            stopping.begin()
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.01)
            assert seen == []
        time.sleep(0.01)
        assert seen == [signal.SIGUSR1]
        with pytest.raises(StoppedBySignal):
            heed_one()
        assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_what_the_program_was_started_to_ignore_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stopping() as stopping:
            stopping.begin()
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        assert stopping.signal == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_sets_no_handlers():
    found = []

    def train():
        with Stopping() as stopping:
            found.append((stopping.signal, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=train)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert found == [(0, before)]


def test_a_forked_worker_outlives_one_signal_and_no_second():
    with Stopping() as stopping:
        check_outlives_one_signal_and_no_second(forked_sleeper(), signal.SIGTERM)
        assert stopping.signal == 0


@pytest.mark.parametrize(("first", "code"), [(True, 143), (False, 0)])
def test_only_the_first_process_ends_with_the_signal(first, code):
    assert StoppedBySignal(signal.SIGTERM, 7, first).code == code


def test_the_command_line_ends_with_one_line_and_goes_on(tmp_path):
    """Signalled with its loader's workers, as SLURM and a terminal do."""
    small = [override for override in SMALL if not override.startswith("stages.train")]
    command = [
        sys.executable, "-m", "qat_lightning", *small, f"hydra.run.dir={tmp_path}", "export.packed=false",
        "stages.teacher.checkpoint_every=1", "data.num_workers=2", "stages.teacher.max_steps=5000",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True, stdout=subprocess.DEVNULL
    )
    place = tmp_path / "checkpoints" / "teacher" / "last.ckpt"
    for _ in range(6000):
        if place.is_file() or started.poll() is not None:
            break
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGTERM)
    told = started.communicate(timeout=60)[1]
    assert started.returncode == 143, told
    # torch's workers heed SIGTERM: where they were gone first, the run goes on from the checkpoint before
    line = r"stopped by SIGTERM after step \d+( \(not saved\))? of stage 'teacher'"
    assert re.fullmatch(rf"{line}: the same command with hydra\.run\.dir={tmp_path} continues", told.strip()), told
    assert resume_point(place.parent)[0] is not None


def test_an_error_after_a_signal_is_told_as_the_signal(tmp_path, monkeypatch, capsys):
    def broken(self, batch, index):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        raise RuntimeError("DataLoader worker is killed by signal: Terminated")

    monkeypatch.setattr(QATModule, "training_step", broken)
    with pytest.raises(StoppedBySignal) as ended:
        small_run(tmp_path)
    assert ended.value.code == 143
    assert isinstance(ended.value.__cause__, RuntimeError)
    assert "stopped by SIGTERM after step 0 (not saved) of stage 'teacher'" in capsys.readouterr().err


def test_one_of_two_processes_is_asked_and_both_stop_after_the_same_step():
    short = ("stages.teacher.max_steps=1", "stages.intervene.max_steps=4", "stages.train.max_steps=6")
    whole, stopped = killed(short, [("signal", 4, [])], processes=2)
    assert stopped == whole
    assert len(whole) == 64
