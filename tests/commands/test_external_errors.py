"""Full disks, occupied folders, damaged data, killed processes: one message, exit code 1, and nothing lost."""

import errno
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from qat_lightning.commands import export
from qat_lightning.commands.errors import error_message
from qat_lightning.commands.train import run as running
from qat_lightning.commands.train.run_directory import FolderError, lock_folder
from qat_lightning.data.dataset_files import read_split
from qat_lightning.data.synthetic import RandomText
from qat_lightning.io.external_errors import explain
from qat_lightning.training.checkpoints.checksum import is_sealed
from tests.command_line import call, start
from tests.training.runs import SMALL, composed, save_tokenizer, small_run, text_config

TWO = ("trainer.devices=2", "trainer.strategy=ddp")
LONG = ("stages.teacher.max_steps=2", "stages.train.max_steps=100000", "stages.train.checkpoint_every=5")
"""Overrides of a run that trains until it is killed."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_for(condition: Callable[[], object], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not reached within {seconds} seconds"
        time.sleep(0.02)


def children(process: int) -> list[int]:
    place = Path(f"/proc/{process}/task/{process}/children")
    return [int(word) for word in place.read_text().split()] if place.exists() else []


# --- disks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a disk")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path, left: int = 0) -> Path:
    """Write a file that leaves so many bytes."""
    ballast, state = disk / "ballast", os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, state.f_bavail * state.f_frsize - left))
    return ballast


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The student's hash of a run without errors."""
    return small_run(tmp_path_factory.mktemp("undisturbed"))["student_hash"]


# A checkpoint has 340 kB: the first one fails, or one that replaces another.
@pytest.mark.parametrize("left", [600_000, *(pytest.param(left, marks=pytest.mark.slow) for left in (20_000, 400_000))])
def test_a_run_continues_after_its_disk_was_full(disk, undisturbed, left):
    folder, ballast = disk / "run", fill(disk, left)
    with pytest.raises(Exception) as ended:  # noqa: PT011 (each writer raises its own class)
        small_run(folder)
    assert "no space left on the disk" in (error_message(ended.value) or "")
    assert not (folder / "metrics.json").exists()
    assert not list(folder.rglob("*.part"))
    assert all(is_sealed(path) for path in folder.rglob("last.ckpt"))
    if left > 500_000:
        assert list(folder.rglob("last.ckpt")) or list(folder.rglob("teacher.json")), "finished files stay"
    ballast.unlink()
    assert small_run(folder)["student_hash"] == undisturbed
    assert json.loads((folder / "metrics.json").read_text())["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize(("module", "name"), [(running, "draw_sections"), (export, "Exporter")])
def test_a_disk_that_is_full_at_the_end_repeats_no_stage(disk, undisturbed, monkeypatch, module, name):
    folder, before = disk / "run", getattr(module, name)

    def full(*arguments, **named):
        made = before(*arguments, **named)
        fill(disk)
        return made

    monkeypatch.setattr(module, name, full)
    with pytest.raises(OSError) as ended:  # noqa: PT011 (the message is checked)
        small_run(folder)
    assert "no space left on the disk" in error_message(ended.value)
    assert json.loads((folder / "metrics.json").read_text())["status"] == "trained"
    written = {path.name: path.stat().st_mtime_ns for path in (folder / "checkpoints").iterdir()}
    (disk / "ballast").unlink()
    monkeypatch.setattr(module, name, before)
    assert small_run(folder)["student_hash"] == undisturbed
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "checkpoints").iterdir()} == written


def test_a_read_only_disk_is_reported(disk):
    (disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for folder in (disk / "run", disk / "new"):
        with pytest.raises(OSError) as error, lock_folder(folder):  # noqa: PT011 (the message is checked)
            pass
        assert f"cannot write to '{folder}" in error_message(error.value)
        assert "hydra.run.dir" in error_message(error.value)


# --- run folders ----------------------------------------------------------------------------------------------------


def test_a_run_folder_that_is_a_file_is_reported(tmp_path):
    (tmp_path / "run").write_text("mine")
    ended = call(tmp_path, *SMALL, "hydra.run.dir=run")
    assert ended.returncode == 1
    assert "hydra.run.dir" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "run").read_text() == "mine"


def test_the_folder_of_another_experiment_is_not_changed(tmp_path):
    one = composed("export.packed=false")
    running.run(one, tmp_path, [])
    before = contents(tmp_path)
    with pytest.raises(FolderError, match=f"experiment {one.experiment!r}"):
        running.run(replace(one, experiment="other"), tmp_path, [])
    with pytest.raises(ValueError, match=f"seed: {one.seed} → 99"):
        running.run(replace(one, seed=99), tmp_path, [])
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("metrics.json", "{}", r"metrics\.json"),
        ("checkpoints/train/my_month_of_training.ckpt", "mine", "checkpoints"),
        ("logs/train/mine.txt", "mine", "logs"),
        (".lock/x", "mine", r"\.lock"),
        ("config.yaml", "services: [web]", r"config\.yaml"),
        ("config.yaml", "!!python/object/apply:os.getcwd []", r"config\.yaml"),
    ],
)
def test_a_folder_that_no_run_wrote_is_not_changed(tmp_path, name, text, named):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(FolderError, match=named):
        small_run(tmp_path)
    assert contents(tmp_path) == {name: text.encode()}


def test_a_finished_run_without_its_checkpoints_is_not_overwritten(tmp_path):
    experiment = composed().experiment
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"experiment": experiment}))
    (tmp_path / "metrics.json").write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(FolderError, match="no checkpoints of them"):
        small_run(tmp_path)
    assert contents(tmp_path) == before


def test_a_folder_is_locked_until_its_process_ends(tmp_path):
    """A loader worker that survives the process for some seconds does not keep the lock."""
    folder, (out, into) = tmp_path / "run", os.pipe()
    holder = os.fork()
    if not holder:
        with lock_folder(folder):
            worker = os.fork()
            if not worker:
                time.sleep(20)
                os._exit(0)
            os.write(into, str(worker).encode())
            time.sleep(20)
    worker = int(os.read(out, 20))
    with pytest.raises(FolderError, match=f"process {holder} on {socket.gethostname()}"):
        small_run(folder)
    assert set(contents(folder)) == {".lock"}
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    os.kill(worker, 0)  # it is still there
    with lock_folder(folder):
        assert str(os.getpid()) in (folder / ".lock").read_text()
    os.kill(worker, signal.SIGKILL)
    assert contents(folder) == {}


def test_a_lock_that_is_a_hard_link_is_refused(tmp_path):
    (tmp_path / "diary").write_text("mine")
    (tmp_path / "run").mkdir()
    os.link(tmp_path / "diary", tmp_path / "run" / ".lock")
    with pytest.raises(FolderError, match=r"\.lock"), lock_folder(tmp_path / "run"):
        pass
    assert (tmp_path / "diary").read_text() == "mine"


@pytest.mark.slow
def test_only_one_of_two_runs_in_one_folder_finishes(tmp_path):
    both = [start(tmp_path, *SMALL, "hydra.run.dir=run") for _ in range(2)]
    assert sorted(command.wait(240) for command in both) == [0, 1]
    refused = next(command for command in both if command.returncode)
    assert "is in use by another run" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert (tmp_path / "run" / "metrics.json").is_file()


# --- data -----------------------------------------------------------------------------------------------------------


def text_run(folder: Path, data: str | Path, tokenizer: str | Path) -> dict:
    config = text_config(Path(data), f"data.tokenizer={tokenizer}", "data.text_columns=[sentence]")
    return running.run(config, folder, [])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"), "a", "cat", "dog")


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("train.csv", b"sentence,label\n", "train"),
        ("train.csv", b"sentence,label\na cat,1,2\n", r"train\.csv"),
        ("train.csv", b"sentence,label\na cat,2\n", "label 2"),
        ("train.jsonl", b'{"sentence": "a cat", "label": 1\n', r"train\.jsonl"),
        ("train.jsonl", b"[" * 100_000, r"train\.jsonl"),
        ("train.parquet", b"PAR1 but no more", r"train\.parquet"),
        ("validation.csv", b"sentence,label\n", "validation"),
    ],
)
def test_unusable_data_is_refused_before_anything_is_written(tmp_path, tokenizer, name, content, named):
    (tmp_path / "data").mkdir()
    other = "validation.csv" if name.startswith("train") else "train.csv"
    (tmp_path / "data" / other).write_text("sentence,label\na cat,1\na dog,0\n")
    (tmp_path / "data" / name).write_bytes(content)
    with pytest.raises(ValueError, match=named) as error:
        text_run(tmp_path / "run", tmp_path / "data", tokenizer)
    assert "\n" not in error_message(error.value)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("parquet") / "train.parquet"
    Dataset.from_dict({"sentence": ["a cat", "a dog"] * 50, "label": [1, 0] * 50}).to_parquet(file)
    return file.read_bytes()


@given(data=st.data())
def test_a_damaged_parquet_file_is_read_or_refused(parquet, tmp_path_factory, data):
    damaged = bytearray(parquet)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "train.parquet").write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    with suppress(ValueError):
        read_split(str(folder), None, "train").to_list()


# --- processes and memory -------------------------------------------------------------------------------------------


def test_a_run_continues_after_its_loader_worker_was_killed(tmp_path, monkeypatch, undisturbed):
    collate = RandomText.collate

    def dying(self, rows):
        if torch.utils.data.get_worker_info() is not None and (tmp_path / "checkpoints" / "teacher.json").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return collate(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(RandomText, "collate", dying)
        with pytest.raises(RuntimeError) as error:
            small_run(tmp_path, "data.num_workers=1")
    assert "data.num_workers=0" in error_message(error.value)
    assert small_run(tmp_path, "data.num_workers=1")["student_hash"] == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["first", "second"])
def test_a_killed_process_ends_the_other_with_a_message(tmp_path, victim):
    folder = tmp_path / "run"
    first = start(tmp_path, *SMALL, *LONG, *TWO, "hydra.run.dir=run")
    wait_for(lambda: (folder / "checkpoints" / "train" / "last.ckpt").is_file())
    (second,) = children(first.pid)
    os.kill(first.pid if victim == "first" else second, signal.SIGKILL)
    assert first.wait(60) != 0
    wait_for(lambda: not Path(f"/proc/{second}").exists(), 60)
    assert "another process of this run has" in first.stderr or "the first process of this run has" in first.stderr
    assert "hydra.run.dir" in first.stderr
    again = start(tmp_path, *SMALL, *LONG, *TWO, "hydra.run.dir=run")
    wait_for(lambda: (folder / "logs" / "train.1").exists() or again.poll() is not None)
    assert again.poll() is None, "it continues"
    os.kill(again.pid, signal.SIGTERM)
    again.wait(120)


@pytest.mark.slow
def test_a_run_that_waits_for_another_machine_ends_at_a_second_signal(tmp_path):
    """It waits in C++, where no Python handler runs."""
    waiting = start(
        tmp_path, *SMALL, "trainer.devices=1", "trainer.num_nodes=2", "trainer.strategy=ddp", "hydra.run.dir=run"
    )
    wait_for(lambda: (tmp_path / "run" / "checkpoints" / "teacher" / "settings.json").is_file())
    time.sleep(5)
    os.kill(waiting.pid, signal.SIGTERM)
    time.sleep(6)  # longer than an echo
    assert waiting.poll() is None
    os.kill(waiting.pid, signal.SIGTERM)
    assert waiting.wait(10) == 143
    assert "second stop signal (SIGTERM)" in waiting.stderr


def test_a_model_that_does_not_fit_into_memory_is_reported(tmp_path):
    with pytest.raises((RuntimeError, MemoryError)) as error:  # 2³¹ rows of 1024 numbers, 8 TB
        small_run(tmp_path / "run", "model.architecture.vocab_size=2147483647", "model.architecture.hidden_size=1024")
    message = error_message(error.value)
    assert message.startswith("out of memory (")
    assert "data.batch_size" in message


# --- Weights & Biases -----------------------------------------------------------------------------------------------


def test_without_an_account_the_run_is_logged_offline_and_says_so(tmp_path):
    empty = {name: "" for name in os.environ if name.startswith("WANDB")}
    impatient = {f"WANDB_{name}_TIMEOUT": "1" for name in ("INIT", "LOGIN", "FINISH")}
    home = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_MODE": "online", "WANDB_SILENT": "true"}
    ended = call(
        tmp_path, *SMALL, "logger=wandb", "hydra.run.dir=run", "export.packed=false", **(empty | impatient | home)
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("this run is logged offline") == 1
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 3, "one W&B run for each stage"


@pytest.mark.slow
@pytest.mark.parametrize("override", ["logger.wandb.offline=true", "logger.wandb.offline=false"])
def test_wandb_is_offline_on_request_and_without_a_network(tmp_path, override):
    key = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_SILENT": "true"}
    words = (*SMALL, "logger=wandb", override, "hydra.run.dir=run")
    ended = call(tmp_path, *words, seconds=90, **key, WANDB_INIT_TIMEOUT="2")
    assert ended.returncode == 0, ended.stderr
    assert ("this run is logged offline" in ended.stdout) is override.endswith("false")
    assert (tmp_path / "run" / "metrics.json").is_file()


# --- messages -------------------------------------------------------------------------------------------------------


def test_the_first_error_is_found_behind_those_of_the_shutdown():
    try:
        raise OSError(errno.ENOSPC, "No space left on device", "last.ckpt")
    except OSError:
        with pytest.raises(RuntimeError) as ended:
            raise RuntimeError("cannot close the log")  # noqa: B904
    assert "'last.ckpt'" in explain(ended.value)
    assert explain(RuntimeError("shapes cannot be multiplied")) is None
