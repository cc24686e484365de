"""The command line as a user meets it: exit codes, messages, time, and what is left on the disk."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from qat_lightning.commands import cli, errors
from qat_lightning.commands.errors import ASKED, FULL, mistakes_in_words, told
from qat_lightning.commands.terminal import ended_by_signals
from qat_lightning.config.schema import ConfigError
from qat_lightning.io.external_errors import SWEEP, another_folder, same_command
from qat_lightning.training.guards.diagnosis import NonFiniteError
from qat_lightning.training.process.signals import ASKING
from tests.forks import check_outlives_one_signal_and_no_second, forked_sleeper
from tests.training.runs import SMALL

ROOT = Path(__file__).parents[2]


def call(
    folder: Path, *words: str, module: str = "qat_lightning", **environment: str
) -> tuple[subprocess.CompletedProcess, float]:
    """`python -m qat_lightning` in an empty folder; the ended process and its seconds."""
    start = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", module, *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
        | environment,
        timeout=240,
        check=False,
    )
    return ended, time.monotonic() - start


def worked() -> float:
    """Seconds of processor time of all ended calls: what another program on the machine takes is not counted."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# Neither hub (a closed port) nor cache (an empty home) nor local files
@pytest.mark.parametrize("experiment", ["ti_bert_large", "ti_bert_base", "ti_minilm_l6", "ternarybert_base"])
def test_without_hub_and_files_it_says_what_is_missing_and_which_overrides_supply_it(tmp_path, experiment):
    ended, seconds = call(tmp_path, f"+experiment={experiment}", HF_HOME=str(tmp_path / "cache"))
    assert ended.returncode == 1
    assert seconds < 60  # some 8 on an idle machine; the libraries' own patience, twice, takes longer
    message = ended.stderr
    assert "model.path=FOLDER" in message
    assert "data.path=FOLDER" in message
    assert "nyu-mll/glue" in message
    assert "Traceback" not in message
    assert len(message.strip().splitlines()) == 2
    assert not list(tmp_path.rglob("metrics.json"))
    assert not list(tmp_path.rglob("config.yaml")), "no run folder that looks begun"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["losses.scores.wieght=3"], "unknown key 'losses.scores.wieght': did you mean 'weight'?"),
        (["sed=3"], "unknown key 'sed': did you mean 'seed'?"),
        (["seed=three"], "seed: Value 'three' of type 'str' could not be converted to Integer"),
        (["teacher=big"], "expected one of [full_precision, none]"),
        (["model=bert_bse"], "bert_base"),
        (["losses.hidden.layers=[[0,99]]"], "losses.hidden.layers holds [0, 99]"),
        (["quantization.activation.bits=12"], "choose 2 to 8"),
        (["losses.hidden._target_=os.system"], "not allowed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistake_ends_in_one_message_and_exit_code_1(tmp_path, words, message):
    before = worked()
    ended, _ = call(tmp_path, *words)
    assert ended.returncode == 1
    assert message in ended.stderr
    assert ended.stderr.startswith("qat_lightning: ")
    assert "Traceback" not in ended.stderr
    assert worked() - before < 10  # 1 to 4 on an idle machine
    assert not list(tmp_path.rglob("*.json"))


def test_traceback_on_request(tmp_path):
    ended, _ = call(tmp_path, "seed=three", HYDRA_FULL_ERROR="1")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConfigError("data.rows=0 must be 1 or more"), "qat_lightning: data.rows=0 must be 1 or more"),
        (OSError(errno.ENOSPC, "No space left on device", "last.ckpt"), "qat_lightning: no room is left on the disk"),
        (MemoryError(), "qat_lightning: out of memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "a process that loads data has died"),
        (KeyboardInterrupt(), "qat_lightning: stopped"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_whatever_a_user_can_mend_ends_in_one_place_without_a_traceback(capsys, error, words):
    with pytest.raises(SystemExit) as ended, mistakes_in_words():
        raise error
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("mat1 and mat2"), AssertionError(), AttributeError("y")])
def test_a_mistake_of_ours_shows_its_traceback_and_what_to_send(capsys, error):
    with pytest.raises(SystemExit) as ended, mistakes_in_words():
        raise error
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert f"qat_lightning: {type(error).__name__}" in said
    assert "mistake in qat_lightning" in said
    assert "config.yaml" in said


def test_what_a_process_that_loads_data_refuses_is_told_without_its_traceback():
    passed_on = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  …\n"
    assert told(ValueError(passed_on + "ValueError: row 3 has no picture\n")) == "ValueError: row 3 has no picture"


def test_a_stage_that_is_asked_to_stop_keeps_its_exit_code(capsys):
    with pytest.raises(SystemExit) as ended, mistakes_in_words():
        raise SystemExit(143)
    assert ended.value.code == 143
    assert capsys.readouterr().err == ""


def signalled(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(5)


def interrupted() -> None:
    """As Lightning answers Ctrl-C."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


@pytest.mark.parametrize("number", ASKING)
def test_a_signal_outside_of_a_training_is_told_in_one_line(capsys, number):
    before = {each: signal.getsignal(each) for each in ASKING}
    with pytest.raises(SystemExit) as ended, ended_by_signals(), mistakes_in_words(), mistakes_in_words():
        signalled(number)
    assert ended.value.code == (1 if number == signal.SIGINT else 128 + number)
    name = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    assert capsys.readouterr().err == f"qat_lightning: stopped{name}\n"
    assert {each: signal.getsignal(each) for each in ASKING} == before


def test_an_interrupt_that_lightning_has_answered_is_told_once(capsys):
    with pytest.raises(SystemExit) as ended, mistakes_in_words(), mistakes_in_words():
        interrupted()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "qat_lightning: stopped\n"


def test_a_second_signal_ends_at_once():
    child = os.fork()
    if not child:
        try:
            with ended_by_signals():
                try:
                    signalled(signal.SIGTERM)
                finally:
                    signalled(signal.SIGTERM)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_a_process_that_loads_data_outlives_one_signal():
    with ended_by_signals():
        check_outlives_one_signal_and_no_second(forked_sleeper(), signal.SIGUSR1)


STOPPED = """
import os, signal, sys
from qat_lightning.commands.train import run as command
command.rehearse = lambda *arguments: os.kill(os.getpid(), signal.SIGTERM)
from qat_lightning.commands.cli import train
train()
"""


def test_a_run_that_is_stopped_before_it_has_begun_leaves_no_folder(tmp_path):
    (tmp_path / "stopped.py").write_text(STOPPED)
    ended = subprocess.run(
        [sys.executable, "stopped.py", *SMALL, "hydra.run.dir=run"],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (143, "qat_lightning: stopped by SIGTERM\n")
    assert {path.name for path in tmp_path.iterdir()} == {"stopped.py"}


LOUD = """
import sys
from pathlib import Path
from rich.console import Console
from qat_lightning.commands.terminal import words_may_be_lost
with words_may_be_lost():
    for stream in (sys.stdout, sys.stderr):
        for _ in range(3):
            print("x" * 100_000, file=stream, flush=True)
        Console(file=stream).print("y")
    Path("through").touch()
"""


def unheard(folder: Path, *words: str) -> int:
    """The exit code of a process that nobody listens to from the start."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    try:
        return subprocess.run(
            [sys.executable, *words], stdout=writer, stderr=writer, cwd=folder, env=environment, check=False
        ).returncode
    finally:
        os.close(writer)


def test_words_that_nobody_reads_end_nothing(tmp_path):
    assert unheard(tmp_path, "-c", LOUD) == 0
    assert (tmp_path / "through").is_file()
    assert unheard(tmp_path, "-m", "qat_lightning", "--cfg", "job") == 0


def test_words_that_a_full_disk_refuses_are_told_elsewhere():
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "qat_lightning", "--cfg", "job"],
            stdout=full, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
        )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.startswith("qat_lightning: no room is left on the disk")
    assert "Traceback" not in ended.stderr


def test_a_program_that_is_started_without_a_stream_for_its_words_runs():
    ended = subprocess.run(
        [sys.executable, "-m", "qat_lightning", "--cfg", "job"], preexec_fn=lambda: os.close(1), stderr=subprocess.PIPE,
        text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.slow
def test_a_run_goes_on_when_nobody_reads_what_it_says(tmp_path):
    assert unheard(tmp_path, "-m", "qat_lightning", *SMALL, "hydra.run.dir=run") == 0
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_the_other_processes_inherit_what_the_user_said_of_tracebacks(monkeypatch):
    seen = []
    monkeypatch.delenv(ASKED, raising=False)
    monkeypatch.setattr(sys, "argv", ["qat_lightning"])
    for asked, inherited in ((None, "0"), ("0", "0"), ("1", "1")):
        monkeypatch.delenv(FULL, raising=False)
        if asked is not None:
            monkeypatch.setenv(FULL, asked)
        cli._in_words(lambda: seen.append((os.environ[FULL], os.environ[ASKED])))
        assert seen.pop() == ("1", inherited)
        assert ASKED not in os.environ
    for asked, shown in (("0", "False"), ("1", "True")):
        told = subprocess.run(
            [sys.executable, "-c", "from qat_lightning.commands.errors import TRACEBACK; print(TRACEBACK)"],
            capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT), FULL: "1", ASKED: asked}, check=True,
        )  # fmt: skip
        assert told.stdout.strip() == shown


def test_numbers_that_are_not_finite_are_not_told_to_go_on_as_before(monkeypatch, capsys):
    monkeypatch.setattr(errors, "_goes_on", lambda: "The same command goes on.")
    for error, advised in ((NonFiniteError("give another hydra.run.dir"), False), (ValueError("no file"), True)):
        with pytest.raises(SystemExit), mistakes_in_words():
            raise error
        assert ("The same command goes on." in capsys.readouterr().err) is advised


def test_configuration_is_printed_without_importing_torch(tmp_path):
    ended, _ = call(tmp_path, "+experiment=ti_bert_large", "--cfg", "job", PYTHONPROFILEIMPORTTIME="1")
    assert ended.returncode == 0
    config = yaml.safe_load(ended.stdout)
    assert config.model.path == "google-bert/bert-large-uncased"
    assert config.stages.intervene.max_steps == 60
    imported = {line.rsplit("|", 1)[-1].strip() for line in ended.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "lightning", "transformers"}


def test_sweep_runs_every_combination_in_a_folder_of_its_own(tmp_path):
    ended, _ = call(tmp_path, "seed=1,2", "--multirun", *SMALL, "hydra.sweep.dir=sweep")
    assert ended.returncode == 0, ended.stderr
    runs = sorted((tmp_path / "sweep").glob("*/config.yaml"))
    assert [yaml.safe_load(path.read_text())["seed"] for path in runs] == [1, 2]
    assert all((path.parent / "metrics.json").is_file() for path in runs)
    assert {path.name for path in tmp_path.iterdir()} == {"sweep"}


def test_a_sweep_tells_each_job_that_is_refused_and_begins_the_next(tmp_path):
    ended, _ = call(tmp_path, "--multirun", "seed=1,2", "data.batch_size=0", *SMALL[:3], "hydra.sweep.dir=sweep")
    assert ended.returncode == 1
    assert ended.stderr.count("qat_lightning: data.batch_size=0 must be 1 or more") == 2
    assert "qat_lightning: 2 of 2 jobs failed, for the reasons above: job 0 (seed=1), job 1 (seed=2)" in ended.stderr
    assert f"The same command with hydra.sweep.dir={tmp_path / 'sweep'} continues" in ended.stderr
    assert "hydra.run.dir" not in ended.stderr
    assert "Traceback" not in ended.stderr
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {"multirun.yaml"}


def test_a_job_of_a_sweep_names_the_folder_of_the_sweep(monkeypatch):
    assert same_command("run/1") == "the same command with hydra.run.dir=run/1"
    assert another_folder() == "another hydra.run.dir"
    monkeypatch.setenv(SWEEP, "/sweeps/1")
    assert same_command("/sweeps/1/0") == "the same command with hydra.sweep.dir=/sweeps/1"
    assert another_folder() == "another hydra.sweep.dir"


def test_without_arguments_the_help_is_printed(tmp_path):
    ended, _ = call(tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("python -m qat_lightning [+experiment=NAME]")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_job_that_failed(tmp_path):
    words = ("--multirun", "trainer.precision=16-true,32-true", *SMALL)  # AdamW's ε is 0 in half precision
    for name, two in (("one", ()), ("two", ("trainer.devices=2", "trainer.strategy=ddp"))):
        ended, _ = call(tmp_path, *words, *two, f"hydra.sweep.dir={name}")
        assert ended.returncode == 1, ended.stderr
        assert "not finite" in ended.stderr
        assert (
            "qat_lightning: 1 of 2 jobs failed, for the reasons above: job 0 (trainer.precision=16-true)"
            in ended.stderr
        )
        assert "Traceback" not in ended.stderr
        assert [path.parent.name for path in (tmp_path / name).glob("*/metrics.json")] == ["1"]


@pytest.mark.slow
def test_sweep_of_runs_with_two_processes_leaves_no_second_folder(tmp_path):
    two = ("trainer.devices=2", "trainer.strategy=ddp")
    ended, _ = call(tmp_path, "--multirun", "seed=1,2", *SMALL, *two, "hydra.sweep.dir=sweep")
    assert ended.returncode == 0, ended.stderr
    assert sorted(path.parent.name for path in (tmp_path / "sweep").glob("*/metrics.json")) == ["0", "1"]
    assert {path.name for path in tmp_path.iterdir()} == {"sweep"}


def test_users_own_configurations_are_found(tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "gentle.yaml").write_text("# @package _global_\nexperiment: gentle\nseed: 9\n")
    ended, _ = call(tmp_path, "--config-dir", "mine", "+experiment=gentle", "--cfg", "job")
    assert ended.returncode == 0, ended.stderr
    assert yaml.safe_load(ended.stdout)["seed"] == 9


def test_weights_and_biases_works_offline_without_an_account(tmp_path):
    run = ("hydra.run.dir=run", "logger=wandb", "logger.wandb.offline=true")
    ended, _ = call(tmp_path, *SMALL, *run, WANDB_SILENT="true", WANDB_MODE="offline")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "run" / "metrics.json").is_file()
    stages = list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(stages) == 3, "one W&B run a stage"


def test_a_bench_from_the_command_line(tmp_path):
    small = ("model=tiny", "bench.shapes=[[1,8]]", "bench.repeats=1", "bench.warmup=0", "bench.loads=1", "threads=1")
    ended, _ = call(tmp_path, *small, "output=figures.json", module="qat_lightning.bench")
    assert ended.returncode == 0, ended.stderr
    assert "onnxruntime packed" in ended.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"figures.json"}


def test_a_bench_that_is_refused_leaves_the_empty_folder_it_was_called_in(tmp_path):
    ended, _ = call(tmp_path, "bench.repeats=0", module="qat_lightning.bench")
    assert ended.returncode == 1
    assert ended.stderr.startswith("qat_lightning: bench.repeats=0 must be a whole number, 1 or more")
    assert tmp_path.is_dir()
