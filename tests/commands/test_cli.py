"""The command line as a user meets it: exit codes, messages, and the files that it leaves."""

import errno
import os
import signal
import sys
import time
import tomllib

import pytest
import torch
import yaml

from qat_lightning.commands import cli
from qat_lightning.commands.errors import HYDRA_TRACEBACK, USER_TRACEBACK, exit_on_error
from qat_lightning.commands.terminal import exit_on_signals
from qat_lightning.config.schema import ConfigError
from qat_lightning.io.external_errors import STOP_SIGNALS, SWEEP, another_folder, same_command
from tests.command_line import ROOT, call, fresh
from tests.forks import check_survives_one_signal, exit_code, forked_sleeper
from tests.training.runs import SMALL

TWO_PROCESSES = ("trainer.devices=2", "trainer.strategy=ddp")


def refused(ended, *parts):
    """Check for one message that holds the parts, and exit code 1."""
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.startswith("qat_lightning: ")
    assert "Traceback" not in ended.stderr
    for part in parts:
        assert part in ended.stderr


def test_missing_model_and_data_are_named_with_their_overrides(tmp_path):
    """The hub does not answer, its cache is empty and there are no local files."""
    ended = call(tmp_path, "+experiment=ti_minilm_l6", seconds=60)
    refused(ended, "model.path=FOLDER", "data.path=FOLDER", "nyu-mll/glue")
    assert len(ended.stderr.strip().splitlines()) == 2
    assert not list(tmp_path.rglob("*.*")), "a refused run leaves no run folder"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("losses.scores.wieght=3", ["'losses.scores.wieght'", "'weight'"]),
        ("sed=3", ["'sed'", "'seed'"]),
        ("seed=three", ["seed: ", "'three'"]),
        ("teacher=big", ["[full_precision, none]"]),
        ("model=bert_bse", ["bert_base"]),
        ("losses.hidden.layers=[[0,99]]", ["losses.hidden: ", "layers holds [0, 99]"]),
        ("quantization.activation.bits=12", ["bits"]),
        ("losses.hidden._target_=os.system", ["os.system"]),
    ],
)
def test_mistake_ends_in_one_message_and_exit_code_1(tmp_path, override, parts):
    refused(call(tmp_path, override), *parts)
    assert not list(tmp_path.rglob("*.json"))


PASSED_ON = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  …\n"


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (ConfigError("data.rows=0 must be 1 or more"), "qat_lightning: data.rows=0 must be 1 or more"),
        (ValueError(PASSED_ON + "ValueError: row 3 has no image\n"), "qat_lightning: ValueError: row 3 has no image"),
        (OSError(errno.ENOSPC, "No space left on device", "last.ckpt"), "'last.ckpt'"),
        (PermissionError(errno.EACCES, "Permission denied", "/run"), "cannot write to '/run'"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/run/.a.part", None, "/run/a"), "'/run/a'"),
        (MemoryError(), "qat_lightning: out of memory (MemoryError)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), "out of memory (CUDA out of"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "data.num_workers"),
        (RuntimeError("[/x/gloo/transport/tcp/pair.cc:1] Connection closed by peer [::1]:5"), "another process"),
        (torch.distributed.DistBackendError("NCCL error"), "another process"),
        (ModuleNotFoundError("No module named 'tensorboard'"), "pip"),
        (KeyboardInterrupt(), "qat_lightning: stopped"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_error_that_a_user_can_correct_has_a_message_with_its_remedy_and_no_traceback(capsys, error, part):
    with pytest.raises(SystemExit) as ended, exit_on_error():
        raise error
    assert ended.value.code == 1
    printed = capsys.readouterr().err
    assert part in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("mat1 and mat2")])
def test_a_bug_shows_its_traceback(capsys, error):
    with pytest.raises(SystemExit) as ended, exit_on_error():
        raise error
    assert ended.value.code == 1
    printed = capsys.readouterr().err
    for part in ("Traceback", f"qat_lightning: {type(error).__name__}", "bug in qat_lightning", "config.yaml"):
        assert part in printed


# --- signals --------------------------------------------------------------------------------------------------------


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(5)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_outside_of_training_ends_with_one_line(capsys, number):
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    with pytest.raises(SystemExit) as ended, exit_on_signals(), exit_on_error(), exit_on_error():
        send(number)
    assert ended.value.code == (1 if number == signal.SIGINT else 128 + number)
    name = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    assert capsys.readouterr().err == f"qat_lightning: stopped{name}\n"
    assert {each: signal.getsignal(each) for each in STOP_SIGNALS} == before


def interrupt_as_lightning():
    """Lightning answers Ctrl-C with SystemExit."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


def test_an_exit_by_lightning_or_a_stage_keeps_its_code(capsys):
    with pytest.raises(SystemExit) as ended, exit_on_error(), exit_on_error():
        interrupt_as_lightning()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "qat_lightning: stopped\n"
    with pytest.raises(SystemExit) as ended, exit_on_error():
        raise SystemExit(143)
    assert ended.value.code == 143
    assert capsys.readouterr().err == ""


def test_a_second_signal_ends_at_once():
    def child():
        with exit_on_signals():
            try:
                send(signal.SIGTERM)
            finally:
                send(signal.SIGTERM)

    assert exit_code(child) == -signal.SIGTERM


def test_a_loader_worker_survives_one_signal():
    with exit_on_signals():
        check_survives_one_signal(forked_sleeper(), signal.SIGUSR1)


# --- a new interpreter ----------------------------------------------------------------------------------------------


def test_configuration_is_printed_without_importing_torch(tmp_path):
    ended = fresh(
        tmp_path, "-X", "importtime", "-m", "qat_lightning", "+experiment=ti_bert_large", "--cfg", "job",
    )  # fmt: skip
    assert ended.returncode == 0
    config = yaml.safe_load(ended.stdout)
    assert config["model"]["path"] == "google-bert/bert-large-uncased"
    imported = {line.rsplit("|", 1)[-1].strip() for line in ended.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "lightning", "transformers"}


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({HYDRA_TRACEBACK: "1"}, True),
        ({HYDRA_TRACEBACK: "1", USER_TRACEBACK: "0"}, False),
    ],
)
def test_traceback_on_request(tmp_path, environment, shown):
    """The other processes of a run have both variables, and the user's own value counts."""
    ended = call(tmp_path, "seed=three", **environment)
    assert ended.returncode == 1
    assert ("Traceback" in ended.stderr) is shown


def test_other_processes_inherit_the_users_traceback_setting(monkeypatch):
    seen = []
    monkeypatch.delenv(USER_TRACEBACK, raising=False)
    monkeypatch.setattr(sys, "argv", ["qat_lightning"])
    for asked, inherited in ((None, "0"), ("0", "0"), ("1", "1")):
        monkeypatch.delenv(HYDRA_TRACEBACK, raising=False)
        if asked is not None:
            monkeypatch.setenv(HYDRA_TRACEBACK, asked)
        cli.start_hydra(lambda: seen.append((os.environ[HYDRA_TRACEBACK], os.environ[USER_TRACEBACK])))
        assert seen.pop() == ("1", inherited)
        assert USER_TRACEBACK not in os.environ


PRINTING = """
import sys
from pathlib import Path
from rich.console import Console
from qat_lightning.commands.terminal import robust_streams
with robust_streams():
    for stream in (sys.stdout, sys.stderr):
        for _ in range(3):
            print("x" * 100_000, file=stream, flush=True)
        Console(file=stream).print("y")
    Path("done").touch()
"""


def exit_code_without_reader(folder, *words):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return fresh(folder, *words, stdout=writer, stderr=writer).returncode
    finally:
        os.close(writer)


def test_output_that_nobody_reads_does_not_end_the_program(tmp_path):
    assert exit_code_without_reader(tmp_path, "-c", PRINTING) == 0
    assert (tmp_path / "done").is_file()


def test_output_to_a_full_disk_is_reported(tmp_path):
    with open("/dev/full", "w") as full:
        ended = fresh(tmp_path, "-m", "qat_lightning", "--cfg", "job", stdout=full)
    refused(ended, "no space left on the disk")


def test_a_program_without_an_output_stream_runs(tmp_path):
    ended = fresh(tmp_path, "-m", "qat_lightning", "--cfg", "job", preexec_fn=lambda: os.close(1))
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.slow
def test_a_run_continues_when_nobody_reads_its_output(tmp_path):
    assert exit_code_without_reader(tmp_path, "-m", "qat_lightning", *SMALL, "hydra.run.dir=run") == 0
    assert (tmp_path / "run" / "metrics.json").is_file()


# --- whole commands -------------------------------------------------------------------------------------------------


def test_without_arguments_the_help_is_printed(tmp_path):
    ended = call(tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "python -m qat_lightning [+experiment=NAME]" in ended.stdout
    for module in (
        "qat_lightning.evaluate",
        "qat_lightning.export",
        "qat_lightning.bench",
        "qat_lightning.check_model",
    ):
        assert f"python -m {module}" in call(tmp_path, "--help", module=module).stdout
    assert not list(tmp_path.iterdir())


def test_sweep_runs_every_combination_in_its_own_folder(tmp_path):
    short = ("stages.teacher.max_steps=1", "stages.intervene.max_steps=1", "stages.train.max_steps=1")
    ended = call(tmp_path, "seed=1,2", "--multirun", *SMALL, *short, "export.packed=false", "hydra.sweep.dir=sweep")
    assert ended.returncode == 0, ended.stderr
    runs = sorted((tmp_path / "sweep").glob("*/config.yaml"))
    assert [yaml.safe_load(path.read_text())["seed"] for path in runs] == [1, 2]
    assert all((path.parent / "metrics.json").is_file() for path in runs)
    assert {path.name for path in tmp_path.iterdir()} == {"sweep"}


def test_a_sweep_reports_each_failed_job_and_continues(tmp_path):
    ended = call(tmp_path, "--multirun", "seed=1,2", "data.batch_size=0", *SMALL[:3], "hydra.sweep.dir=sweep")
    refused(ended, "2 of 2 jobs failed", "job 0 (seed=1), job 1 (seed=2)", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert ended.stderr.count("qat_lightning: data.batch_size=0") == 2
    assert "hydra.run.dir" not in ended.stderr
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {"multirun.yaml"}


def test_a_job_of_a_sweep_names_the_folder_of_the_sweep(monkeypatch):
    assert same_command("run/1") == "the same command with hydra.run.dir=run/1"
    assert another_folder() == "another hydra.run.dir"
    monkeypatch.setenv(SWEEP, "/sweeps/1")
    assert same_command("/sweeps/1/0") == "the same command with hydra.sweep.dir=/sweeps/1"
    assert another_folder() == "another hydra.sweep.dir"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [(), TWO_PROCESSES], ids=["one", "two"])
def test_a_sweep_continues_after_a_job_that_failed(tmp_path, processes):
    words = ("--multirun", "trainer.precision=16-true,32-true", *SMALL)  # AdamW's ε is 0 in half precision
    ended = fresh(tmp_path, "-m", "qat_lightning", *words, *processes, "hydra.sweep.dir=sweep")
    refused(ended, "not finite", "1 of 2 jobs failed", "job 0 (trainer.precision=16-true)")
    assert [path.parent.name for path in (tmp_path / "sweep").glob("*/metrics.json")] == ["1"]
    assert {path.name for path in tmp_path.iterdir()} == {"sweep"}, "the second process makes no folder"


def test_users_own_configurations_are_found(tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "gentle.yaml").write_text("# @package _global_\nexperiment: gentle\nseed: 9\n")
    ended = call(tmp_path, "--config-dir", "mine", "+experiment=gentle", "--cfg", "job")
    assert ended.returncode == 0, ended.stderr
    assert yaml.safe_load(ended.stdout)["seed"] == 9


def test_a_bench_from_the_command_line(tmp_path):
    small = (
        "bench=training",
        "model=tiny",
        "bench.shape=[2,8]",
        "bench.only=[qat]",
        "bench.repeats=1",
        "bench.warmup=0",
    )
    ended = call(tmp_path, *small, "threads=1", "output=figures.json", module="qat_lightning.bench")
    assert ended.returncode == 0, ended.stderr
    assert "transformers" in ended.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"figures.json"}
    refused(call(tmp_path, "bench.repeats=0", module="qat_lightning.bench"), "bench.repeats=0")


def test_console_scripts_call_the_commands():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    commands = ("train", "evaluate", "predict", "export", "bench", "check-model")
    assert set(scripts) == {f"qat-{name}" for name in commands}
    for script, target in scripts.items():
        name = script.removeprefix("qat-").replace("-", "_")
        assert target == f"{cli.__name__}:{name}"
        assert callable(getattr(cli, name))


def test_a_run_that_is_stopped_before_it_begins_leaves_no_folder(tmp_path):
    (tmp_path / "stopped.py").write_text(
        "import os, signal\n"
        "from qat_lightning.commands.train import run as command\n"
        "command.prepared = lambda *arguments: os.kill(os.getpid(), signal.SIGTERM)\n"
        "from qat_lightning.commands.cli import train\n"
        "train()\n"
    )
    ended = call(tmp_path, *SMALL, "hydra.run.dir=run", module="stopped")
    assert (ended.returncode, ended.stderr) == (143, "qat_lightning: stopped by SIGTERM\n")
    assert not (tmp_path / "run").exists()
