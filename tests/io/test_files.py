"""Files are written atomically and never through links in the folder; a folder with a link is refused."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from qat_lightning.io.files import (
    SpecialFileError,
    atomic_write,
    check_plain,
    remove_parts,
    write_json,
    write_once,
    write_text,
)


def test_a_file_that_cannot_be_written_leaves_the_old_ones(tmp_path):
    path, previous = tmp_path / "last", tmp_path / "previous"
    path.write_text("old")
    previous.write_text("older")

    def full():
        with atomic_write(path, previous) as temporary:
            temporary.write_text("ne")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="space"):
        full()
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"last": "old", "previous": "older"}
    with atomic_write(path, previous) as temporary:
        temporary.write_text("new")
        assert (path.read_text(), previous.read_text(), temporary.parent) == ("old", "older", tmp_path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"last": "new", "previous": "old"}


@pytest.mark.parametrize("make", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_what_a_link_points_to_keeps_its_content(tmp_path: Path, make) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    make(outside, tmp_path / "report.md")
    write_text(tmp_path / "report.md", "new")
    assert ((tmp_path / "report.md").read_text(), outside.read_text()) == ("new", "mine")
    assert not (tmp_path / "report.md").is_symlink()


def test_the_temporary_name_is_new_each_time_and_has_the_usual_permissions(tmp_path: Path) -> None:
    names = set()
    for _ in range(3):
        with atomic_write(tmp_path / "x") as temporary:
            names.add(temporary.name)
            temporary.unlink()
            temporary.touch(0o600)  # as safetensors does
    assert len(names) == 3
    umask = os.umask(0o22)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~umask


def test_json_is_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": [1.5, float("-inf"), (True, None)]})
    text = "".join((tmp_path / "x.json").read_text().split())
    assert text == '{"a":null,"b":[1.5,null,[true,null]]}'


def test_the_first_of_two_writers_stays(tmp_path: Path) -> None:
    write_once(tmp_path / "x", "first")
    write_once(tmp_path / "x", "second")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x": "first"}


def a_link(path: Path) -> None:
    path.symlink_to("/nowhere")


def a_link_to_a_folder(path: Path) -> None:
    path.symlink_to(path.parent.parent, target_is_directory=True)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        place = os.getcwd()
        os.chdir(path.parent)  # the length of a socket's name is limited
        bound.bind(path.name)
        os.chdir(place)


@pytest.mark.parametrize("name", ["x", "a/b/c/x", ".lock"])
@pytest.mark.parametrize(
    ("make", "kind"),
    [(a_link, "symbolic link"), (a_link_to_a_folder, "symbolic link"), (os.mkfifo, "named pipe"), (a_socket, "socket")],
)
def test_a_folder_holds_plain_files_and_folders(tmp_path: Path, name: str, make, kind: str) -> None:
    place = tmp_path / "run" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "run" / "file").touch()
    os.link(tmp_path / "run" / "file", tmp_path / "run" / "other")
    check_plain(tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    check_plain(tmp_path / "link")
    check_plain(tmp_path / "missing")
    make(place)
    with pytest.raises(SpecialFileError, match=f"{place.name}' is a {kind}, through"):
        check_plain(tmp_path / "run")


def test_the_links_of_weights_and_biases_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "wandb" / "offline-run-1" / "logs").mkdir(parents=True)
    (tmp_path / "wandb" / "offline-run-1" / "logs" / "debug-core.log").symlink_to("/nowhere/core-debug.log")
    check_plain(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "wandb").symlink_to("/nowhere")
    with pytest.raises(SpecialFileError, match="other/wandb' is a symbolic link"):
        check_plain(tmp_path)
    (tmp_path / "other" / "wandb").unlink()
    (tmp_path / "wandb").rename(tmp_path / "aside")
    (tmp_path / "wandb").symlink_to(tmp_path / "aside")
    with pytest.raises(SpecialFileError, match="is a symbolic link"):
        check_plain(tmp_path)


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    own = [tmp_path / ".x.json.0123456789abcdef.part", tmp_path / "a" / ".last.ckpt.fedcba9876543210.part"]
    others = [tmp_path / name for name in ("x.part", "x.0123456789abcdef.part", ".x.0123.part", "a/last.ckpt.part")]
    (tmp_path / "a").mkdir()
    for path in own + others:
        path.touch()
    remove_parts(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(others)
