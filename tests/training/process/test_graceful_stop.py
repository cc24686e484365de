"""A run that is asked to stop finishes its batch, writes a checkpoint and ends; the same command continues it."""

import ctypes
import os
import re
import signal
import threading
import time

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from qat_lightning.compat import without_signal_handlers
from qat_lightning.config.builders.training import build_trainer
from qat_lightning.io.external_errors import STOP_SIGNALS
from qat_lightning.training.checkpoints.callbacks import ResumeCheckpoint, resume_point
from qat_lightning.training.module import QATModule
from qat_lightning.training.process.graceful_stop import GracefulStop, StoppedBySignal
from qat_lightning.training.process.watchdog import Watchdog
from tests.command_line import start
from tests.forks import check_survives_one_signal, exit_code, forked_sleeper
from tests.training.runs import SMALL, composed, small_run


class Signalled(LightningModule):
    """One weight that follows its batches; sends itself a signal in a training or a validation batch."""

    def __init__(self, number=signal.SIGTERM, training=None, validation=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.number, self.at = number, {"training": training, "validation": validation}
        self.seen = {"training": 0, "validation": 0}

    def count(self, kind):
        self.seen[kind] += 1
        if self.seen[kind] == self.at[kind]:
            os.kill(os.getpid(), self.number)

    def training_step(self, batch, index):
        self.count("training")
        return (self.weight * batch).sum()

    def validation_step(self, batch, index):
        self.count("validation")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, module, **settings):
    """Train 12 steps, with a validation of two batches every 4 training batches and no checkpoint between."""
    stopping = GracefulStop()
    trainer = Trainer(
        max_steps=12, max_epochs=-1, val_check_interval=4, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        callbacks=[ResumeCheckpoint(folder / "last.ckpt", 100, stopping=stopping)], default_root_dir=folder, **settings,
    )  # fmt: skip
    with stopping:
        without_signal_handlers(trainer).fit(module, DataLoader(torch.arange(48.0)), DataLoader(torch.arange(2.0)))
    return trainer


@pytest.mark.parametrize(
    ("module", "settings", "step", "seen"),
    [
        (Signalled(signal.SIGTERM, training=3), {}, 3, {"training": 3, "validation": 0}),
        (Signalled(signal.SIGUSR1, training=3), {}, 3, {"training": 3, "validation": 0}),
        (Signalled(signal.SIGINT, training=3), {}, 3, {"training": 3, "validation": 0}),
        # a validation that follows, or has begun, and accumulated batches are finished first
        (Signalled(training=4), {}, 4, {"training": 4, "validation": 2}),
        (Signalled(validation=1), {}, 4, {"training": 4, "validation": 2}),
        (Signalled(training=5), {"accumulate_grad_batches": 3}, 2, {"training": 6, "validation": 2}),
        (Signalled(training=12), {}, 12, {"training": 12, "validation": 6}),
    ],
)
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(tmp_path, module, settings, step, seen):
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    with pytest.raises(StoppedBySignal) as ended:
        fit(tmp_path, module, **settings)
    assert ended.value.code == 128 + module.number
    assert (ended.value.name, ended.value.step) == (signal.Signals(module.number).name, step)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == step
    assert module.seen == seen
    assert {each: signal.getsignal(each) for each in STOP_SIGNALS} == before


@pytest.mark.parametrize("hook", ["setup", "on_fit_end"])
def test_a_signal_before_the_first_and_after_the_last_step_has_its_former_effect(tmp_path, hook):
    """Processes may wait for each other before the first step, and an analysis after the last can take hours."""
    module, seen = Signalled(), []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    setattr(module, hook, lambda *_, **__: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0.01), seen.append(hook)))
    try:
        assert fit(tmp_path, module).global_step == 12
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM, hook]


def test_trainers_of_a_run_install_no_handlers_of_lightning(tmp_path):
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    trainer = build_trainer(composed(), "teacher", 1, tmp_path, record=False)
    trainer._signal_connector.register_signal_handlers()
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


def test_the_first_signal_counts_and_a_second_interrupt_ends_at_once():
    def child():
        with GracefulStop() as stopping:
            stopping.begin()
            for number in (signal.SIGTERM, signal.SIGUSR1):
                os.kill(os.getpid(), number)
                time.sleep(0.01)
            if stopping.signal == signal.SIGTERM:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)

    assert exit_code(child) == 128 + signal.SIGINT


def test_a_signal_that_nobody_acted_on_is_sent_again():
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        with GracefulStop() as stopping:
            stopping.begin()
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.01)
            assert seen == []
        time.sleep(0.01)
        assert seen == [signal.SIGUSR1]
        with pytest.raises(StoppedBySignal), GracefulStop() as stopping:  # noqa: PT012
            stopping.begin()
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.01)
            raise StoppedBySignal(stopping.signal, 1)
        assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with GracefulStop() as stopping:
            stopping.begin()
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        assert stopping.signal == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_sets_no_handlers():
    handlers = []

    def train():
        with GracefulStop():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


def test_a_forked_worker_survives_one_signal():
    with GracefulStop() as stopping:
        check_survives_one_signal(forked_sleeper(), signal.SIGTERM)
        assert stopping.signal == 0


# --- the watchdog ---------------------------------------------------------------------------------------------------


def block(watchdog):
    """Wait in one call for a lock that nobody releases: no Python handler runs."""
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


def watched(signals, wait, patience=60.0, echo=5.0, pause=0.3):
    """Return the exit code of a process that waits, and how long it lived after the first of its signals."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            with Watchdog(patience, echo) as watchdog:
                os.write(writer, b"x")
                wait(watchdog)
        finally:
            os._exit(7)
    os.read(reader, 1)
    time.sleep(0.1)
    begin = time.monotonic()
    for number in signals:
        os.kill(child, number)
        time.sleep(pause)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(reader)
    os.close(writer)
    return code, time.monotonic() - begin


@pytest.fixture
def _handlers():
    """Set Python handlers, as the command line does: without one the system ends a process at once."""
    before = {number: signal.signal(number, lambda number, frame: None) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize(
    ("signals", "settings", "code", "shortest"),
    [
        *(([number], {"patience": 0.3}, 128 + number, 0.3) for number in STOP_SIGNALS),
        ([signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM], {"echo": 0.3, "pause": 0.2}, 143, 0.4),  # one is an echo
        ([signal.SIGTERM, signal.SIGINT], {"pause": 0.01}, 130, 0.0),
    ],
)
def test_a_blocked_process_ends_after_a_signal_or_at_a_second(signals, settings, code, shortest, capfd):
    ended, seconds = watched(signals, block, **settings)
    assert ended == code
    assert shortest <= seconds < 5
    assert f"({signal.Signals(code - 128).name})" in capfd.readouterr().err


@pytest.mark.usefixtures("_handlers")
def test_a_handled_signal_does_not_end_a_long_validation():
    def validate(watchdog):
        signal.signal(signal.SIGTERM, lambda number, frame: watchdog.confirm_handled())
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            time.sleep(0.05)

    assert watched([signal.SIGTERM], validate, patience=0.3)[0] == 7


@pytest.mark.usefixtures("_handlers")
def test_a_signal_to_a_loader_worker_does_not_end_the_training_process():
    def train(watchdog):
        worker = forked_sleeper()
        time.sleep(0.1)
        for number in (signal.SIGINT, signal.SIGINT):
            os.kill(worker, number)
            time.sleep(0.05)
        time.sleep(0.4)
        os.kill(worker, signal.SIGKILL)

    assert watched([], train, patience=0.2)[0] == 7


# --- whole runs -----------------------------------------------------------------------------------------------------


def test_the_command_line_ends_with_one_line_and_continues(tmp_path):
    """The signal goes to the whole process group, loader workers included, as SLURM and terminals send it."""
    small = [override for override in SMALL if not override.startswith("stages.train")]
    long = ("stages.teacher.checkpoint_every=1", "stages.teacher.max_steps=5000", "data.num_workers=2")
    command = start(tmp_path, *small, *long, "hydra.run.dir=run", "export.packed=false")
    place = tmp_path / "run" / "checkpoints" / "teacher" / "last.ckpt"
    while not place.is_file() and command.poll() is None:
        time.sleep(0.02)
    os.killpg(command.pid, signal.SIGTERM)
    assert command.wait(60) == 143, command.stderr
    # torch's workers end at SIGTERM: if they were first, the run continues from the previous checkpoint
    line = r"stopped by SIGTERM after step \d+( \(not saved\))? of stage 'teacher'.*hydra\.run\.dir=\S*run\b.*"
    assert re.fullmatch(line, command.stderr.strip()), command.stderr
    assert resume_point(place.parent)[0] is not None


def test_an_error_after_a_signal_counts_as_the_signal(tmp_path, monkeypatch, capsys):
    def broken(self, batch, index):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        raise RuntimeError("DataLoader worker is killed by signal: Terminated")

    monkeypatch.setattr(QATModule, "training_step", broken)
    with pytest.raises(StoppedBySignal) as ended:
        small_run(tmp_path)
    assert ended.value.code == 143
    assert isinstance(ended.value.__cause__, RuntimeError)
    assert "stopped by SIGTERM after step 0" in capsys.readouterr().err
