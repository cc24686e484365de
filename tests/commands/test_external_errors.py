"""The world gone wrong: full disks, folders that are taken, killed processes. Words, exit code 1, and nothing lost."""

import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from qat_lightning.commands import export
from qat_lightning.commands.cli import checked
from qat_lightning.commands.errors import error_message
from qat_lightning.commands.train import run as running
from qat_lightning.commands.train.run_directory import FolderError, lock_folder
from qat_lightning.config.schema import CONF
from qat_lightning.data.dataset_files import read_split
from qat_lightning.data.synthetic import RandomText
from qat_lightning.io.external_errors import explain
from qat_lightning.training.checkpoints.checksum import is_sealed
from tests.commands.test_cli import ROOT, call
from tests.training.runs import SMALL, composed, small_run

TWO = ("trainer.devices=2", "trainer.strategy=ddp")
LONG = ("stages.teacher.max_steps=2", "stages.train.max_steps=100000", "stages.train.checkpoint_every=5")
"""Overrides of a run that is there until it is killed."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def started(folder: Path, *words: str) -> subprocess.Popen:
    """The command line in a process of its own, to be killed or waited for."""
    return subprocess.Popen(
        [sys.executable, "-m", "qat_lightning", *SMALL, f"hydra.run.dir={folder}", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def awaited(seen: Callable[[], object], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def children(process: int) -> list[int]:
    place = Path(f"/proc/{process}/task/{process}/children")
    return [int(word) for word in place.read_text().split()] if place.exists() else []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root can mount a disk")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path, left: int = 0) -> Path:
    """A file that leaves so many bytes; to be removed when there is to be room again."""
    ballast, state = disk / "ballast", os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, state.f_bavail * state.f_frsize - left))
    return ballast


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The student of a run that nothing happened to."""
    return small_run(tmp_path_factory.mktemp("undisturbed"))["student_hash"]


# A checkpoint is 340 kB: the first one fails, or one that is to replace another.
@pytest.mark.parametrize(
    "left", [600_000, *(pytest.param(left, marks=pytest.mark.slow) for left in (20_000, 400_000, 800_000))]
)
def test_a_disk_that_fills_up_ends_the_run_in_words_and_it_goes_on_when_there_is_room(disk, undisturbed, left):
    folder, ballast = disk / "run", fill(disk, left)
    with pytest.raises(Exception) as ended:  # noqa: PT011 (each writer has its own; the words are looked at)
        small_run(folder)
    assert "no room is left on the disk" in (error_message(ended.value) or "")
    assert not (folder / "metrics.json").exists()
    assert not list(folder.rglob("*.part")), "nothing half-written"
    assert all(is_sealed(path) for path in folder.rglob("last.ckpt"))
    if left > 500_000:
        assert list(folder.rglob("last.ckpt")) or list(folder.rglob("teacher.json")), "what was written stays"
    ballast.unlink()
    assert small_run(folder)["student_hash"] == undisturbed
    assert json.loads((folder / "metrics.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("module", "name"), [(running, "draw_sections"), pytest.param(export, "Exporter", marks=pytest.mark.slow)]
)
def test_a_disk_that_is_full_at_the_end_costs_no_stage(disk, undisturbed, monkeypatch, module, name):
    folder, before = disk / "run", getattr(module, name)

    def full(*arguments, **named):
        made = before(*arguments, **named)
        fill(disk)  # the report cannot be written; or the export
        return made

    monkeypatch.setattr(module, name, full)
    with pytest.raises(OSError) as ended:  # noqa: PT011 (the words are looked at below)
        small_run(folder)
    assert "no room is left on the disk" in error_message(ended.value)
    assert json.loads((folder / "metrics.json").read_text())["status"] == "trained"
    assert not list(folder.rglob("*.part")), "nothing half-written"
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / "checkpoints").iterdir()}
    (disk / "ballast").unlink()
    monkeypatch.setattr(module, name, before)
    assert small_run(folder)["student_hash"] == undisturbed
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "checkpoints").iterdir()} == kept, "not run again"


def test_a_read_only_disk_is_told(disk):
    (disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for folder in (disk / "run", disk / "new"):
        with pytest.raises(OSError) as error:  # noqa: PT011 (the words are looked at below)
            small_run(folder)
        message = error_message(error.value)
        assert f"no permission for '{folder}" in message
        assert "Read-only file system" in message
        assert "hydra.run.dir=…" in message


def test_a_run_folder_that_is_a_file_is_told(tmp_path):
    (tmp_path / "run").write_text("mine")
    ended, _ = call(tmp_path, *SMALL, "hydra.run.dir=run")
    assert ended.returncode == 1
    assert "a file is in the way of a folder" in ended.stderr
    assert "hydra.run.dir" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.slow
def test_a_limit_of_file_sizes_is_told(tmp_path):
    command = [sys.executable, "-m", "qat_lightning", *SMALL, "hydra.run.dir=run"]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000)),
        check=False,
    )
    assert ended.returncode == 1
    assert "largest size allowed here" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("finished", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_folder_of_another_experiment_stays_as_it_is(tmp_path, finished):
    one = replace(composed(), experiment="one")
    running.run(one, tmp_path, [])
    if not finished:
        (tmp_path / "metrics.json").unlink()
        (tmp_path / "checkpoints" / "train.json").unlink()
    before = contents(tmp_path)
    with pytest.raises(
        FolderError, match=r"holds a run of experiment 'one', and this is 'two': give another hydra\.run"
    ):
        running.run(one | {"experiment": "two"}, tmp_path, [])
    assert contents(tmp_path) == before
    # The same name with other settings is as much another one.
    with pytest.raises(ValueError, match=r"made with other settings \(.*seed: 1 → 2"):
        running.run(one | {"seed": 2}, tmp_path, [])
    assert contents(tmp_path) == before


def test_a_finished_run_without_its_checkpoints_is_not_overwritten(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(composed()))
    (tmp_path / "metrics.json").write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(FolderError, match="finished run without its checkpoints"):
        small_run(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("metrics.json", "{}", r"holds metrics\.json and no config\.yaml"),
        ("report.md", "mine", r"holds report\.md and no config\.yaml"),
        ("checkpoints/train/my_month_of_training.ckpt", "mine", r"holds checkpoints and no config\.yaml"),
        ("checkpoints/gan.part", "mine", r"holds checkpoints and no config\.yaml"),
        ("logs/train/mine.txt", "mine", r"holds logs and no config\.yaml"),
        ("earlier/1/x", "mine", r"holds earlier and no config\.yaml"),
        (".lock/x", "mine", r"\.lock' is a folder"),
        ("config.yaml", "services: [web]", r"config\.yaml' was not written by a run"),
        ("config.yaml", "a: [", r"config\.yaml' was not written by a run"),
        ("config.yaml", "!!python/object/apply:os.getcwd []", r"config\.yaml' was not written by a run"),
    ],
)
def test_a_folder_with_somebody_elses_files_is_left_alone(tmp_path, name, text, words):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(FolderError, match=words):
        small_run(tmp_path)
    assert contents(tmp_path) == {name: text.encode()}


HOLDER = """
import os, sys, time
from pathlib import Path
from qat_lightning.commands.train.run_directory import lock_folder
with lock_folder(Path(sys.argv[1])):
    if os.fork() == 0:  # as a process that loads data is
        time.sleep(20)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_belongs_to_one_run_until_that_ends_in_whatever_way(tmp_path):
    folder = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(
        FolderError, match=rf"is in use by another run \(process {holder.pid} on {socket.gethostname()}\)"
    ):
        small_run(folder)
    assert set(contents(folder)) == {".lock"}
    (left,) = children(holder.pid)
    holder.kill()
    holder.wait()
    assert left in [int(name) for name in os.listdir("/proc") if name.isdigit()], "its own child is still there"
    with lock_folder(folder):
        assert str(os.getpid()) in (folder / ".lock").read_text()
    os.kill(left, signal.SIGKILL)
    assert contents(folder) == {}


def test_a_refused_run_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"is no folder: give data\.\w+=FOLDER"):
        text_run(tmp_path / "run", "/no/such/folder", "/no/such/tokenizer")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_of_two_runs_started_at_once_in_one_folder_one_finishes(tmp_path):
    both = [started(tmp_path / "run") for _ in range(2)]
    said = [process.communicate(timeout=240)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], said
    refused = said[[process.returncode for process in both].index(1)]
    assert "is in use by another run" in refused
    assert "Traceback" not in refused
    assert (tmp_path / "run" / "metrics.json").is_file()


def text_run(folder: Path, data: str | Path, tokenizer: str | Path) -> dict:
    words = [word for word in SMALL if not word.startswith("data.rows")]
    words += ["data=text", f"data.path={data}", f"data.tokenizer={tokenizer}", "data.text_columns=[sentence]"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = checked(compose("config", overrides=[*words, "data.num_labels=2", "data.max_length=16"]))
    return running.run(config, folder, words)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog"]
    BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    return folder


GOOD = "sentence,label\na cat,1\na dog,0\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train.csv", b"sentence,label\n", r"the train split of .* is empty"),
        ("train.csv", b"sentence,label\na cat,1,2\n", r"train\.csv' cannot be read \(.*Expected 2 columns, got 3"),
        ("train.csv", b"sentence,label\na cat,2\n", r"row 0 of the train split has label 2, outside 0…1"),
        ("train.csv", b"sentence,label\na cat,-1\n", r"no row of the train split has a label \(-1: 1\)"),
        ("train.jsonl", b'{"sentence": "a cat", "label": 1\n', r"train\.jsonl' cannot be read"),
        ("train.jsonl", b"", r"the train split of .* is empty"),
        ("train.jsonl", b"[" * 100_000, r"train\.jsonl' cannot be read"),
        ("train.parquet", b"PAR1 but no more", r"train\.parquet' cannot be read"),
        ("validation.csv", b"sentence,label\n", r"the validation split of .* is empty"),
    ],
)
def test_data_that_cannot_be_used_is_told_before_anything_is_written(tmp_path, tokenizer, name, content, words):
    (tmp_path / "data").mkdir()
    other = "validation.csv" if name.startswith("train") else "train.csv"
    (tmp_path / "data" / other).write_text(GOOD)
    (tmp_path / "data" / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        text_run(tmp_path / "run", tmp_path / "data", tokenizer)
    assert "\n" not in error_message(error.value)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parquet")
    Dataset.from_dict({"sentence": ["a cat", "a dog"] * 50, "label": [1, 0] * 50}).to_parquet(folder / "train.parquet")
    return folder


@given(data=st.data())
def test_a_damaged_parquet_file_is_read_or_told(parquet, tmp_path_factory, data):
    whole = bytearray((parquet / "train.parquet").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "train.parquet").write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with suppress(ValueError):
        read_split(str(folder), None, "train").to_list()


def test_a_killed_process_that_loads_data_is_told_and_the_run_goes_on(tmp_path, monkeypatch, undisturbed):
    collate = RandomText.collate

    def dying(self, rows):
        if torch.utils.data.get_worker_info() is not None and (tmp_path / "checkpoints" / "teacher.json").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return collate(self, rows)

    monkeypatch.setattr(RandomText, "collate", dying)
    start = time.monotonic()
    with pytest.raises(RuntimeError) as error:
        small_run(tmp_path, "data.num_workers=1")
    assert time.monotonic() - start < 60
    assert "a process that loads data has died" in error_message(error.value)
    assert "data.num_workers=0" in error_message(error.value)
    monkeypatch.setattr(RandomText, "collate", collate)
    assert small_run(tmp_path, "data.num_workers=1")["student_hash"] == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["first", "second"])
def test_one_of_two_processes_killed_ends_the_other_in_words_and_the_run_goes_on(tmp_path, victim):
    folder = tmp_path / "run"
    first = started(folder, *LONG, *TWO)
    awaited(lambda: (folder / "checkpoints" / "train" / "last.ckpt").is_file())
    (second,) = children(first.pid)
    os.kill(first.pid if victim == "first" else second, signal.SIGKILL)
    start = time.monotonic()
    _, said = first.communicate(timeout=60)  # closed when both have ended
    assert time.monotonic() - start < 60
    assert first.returncode != 0
    assert "another process of this run has" in said or "the first process of this run has gone" in said, said
    assert "hydra.run.dir" in said
    again = started(folder, *LONG, *TWO)
    awaited(lambda: len(children(again.pid)) == 1)
    awaited(lambda: (folder / "logs").joinpath("train.1").exists() or again.poll() is not None)
    assert again.poll() is None, "it goes on"
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=120)


@pytest.mark.slow
def test_a_run_that_waits_for_another_machine_ends_at_a_second_signal(tmp_path):
    """It waits in C++, where no handler of Python's runs."""
    folder = tmp_path / "run"
    waiting = started(folder, "trainer.devices=1", "trainer.num_nodes=2", "trainer.strategy=ddp")
    awaited(lambda: (folder / "checkpoints" / "teacher" / "settings.json").is_file())
    time.sleep(5)  # it has nothing to do any more
    waiting.send_signal(signal.SIGTERM)
    time.sleep(6)  # no echo
    assert waiting.poll() is None
    waiting.send_signal(signal.SIGTERM)
    said = waiting.communicate(timeout=10)[1]
    assert waiting.returncode == 143
    assert "asked once more to stop (SIGTERM)" in said


@pytest.fixture
def _no_account(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_INIT_TIMEOUT", "WANDB_LOGIN_TIMEOUT", "WANDB_FINISH_TIMEOUT"):
        monkeypatch.setenv(name, "1")


@pytest.mark.usefixtures("_no_account")
def test_without_an_account_the_run_is_logged_offline_and_says_so(tmp_path, capfd):
    assert small_run(tmp_path / "run", "logger=wandb")["status"] == "finished"
    assert capfd.readouterr().out.count("this run is logged offline") == 1
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 3, "one for each stage"


@pytest.mark.slow
def test_with_an_account_and_no_network_the_run_is_logged_offline_within_bounded_time(tmp_path):
    key = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_SILENT": "true"}
    ended, seconds = call(tmp_path, *SMALL, "logger=wandb", "hydra.run.dir=run", **key, WANDB_INIT_TIMEOUT="2")
    assert ended.returncode == 0, ended.stderr
    assert "this run is logged offline" in ended.stdout
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert seconds < 90


def test_a_model_that_memory_cannot_hold_is_told(tmp_path):
    with pytest.raises((RuntimeError, MemoryError)) as error:  # 2³¹ rows of 1024 numbers, 8 TB
        small_run(tmp_path / "run", "model.architecture.vocab_size=2147483647", "model.architecture.hidden_size=1024")
    message = error_message(error.value)
    assert message.startswith("out of memory (")
    assert "data.batch_size" in message
    assert "trainer.accumulate_grad_batches" in message


@contextmanager
def handling(error: BaseException) -> Iterator[None]:
    """Raise something else while an error is being handled, as a logger that is taken down does."""
    try:
        raise error
    except BaseException:
        yield


def test_what_takes_a_run_down_is_found_behind_what_it_raises():
    with pytest.raises(RuntimeError) as ended, handling(OSError(errno.ENOSPC, "No space left on device", "last.ckpt")):
        raise RuntimeError("cannot close the log")
    assert explain(ended.value).startswith("no room is left on the disk for 'last.ckpt'")
    assert explain(RuntimeError("shapes cannot be multiplied")) is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory (MemoryError)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), "out of memory (CUDA out of"),
        (RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly"), "a process that loads data has died"),
        (
            RuntimeError("[/x/gloo/transport/tcp/pair.cc:1] Connection closed by peer [::1]:5"),
            "another process of this run",
        ),
        (torch.distributed.DistBackendError("NCCL error"), "another process of this run"),
        (PermissionError(errno.EACCES, "Permission denied", "/run"), "no permission for '/run'"),
        (
            IsADirectoryError(errno.EISDIR, "Is a directory", "/run/.a.part", None, "/run/a"),
            "a folder is in the way of a file for '/run/a'",
        ),
        (ModuleNotFoundError("No module named 'tensorboard'"), "install it with pip"),
    ],
)
def test_what_the_world_does_has_words(error, words):
    assert words in explain(error)
