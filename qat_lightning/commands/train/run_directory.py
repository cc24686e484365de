"""The run folder: whose it is, one run in it at a time, no other run's results touched."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qat_lightning.io.documents import DocumentError, read_yaml
from qat_lightning.io.files import check_plain, remove_parts

LOCK = ".lock"
CONFIG, RESULTS = "config.yaml", "metrics.json"
WRITTEN = (
    RESULTS, "report.md", "overrides.yaml", "checkpoints", "logs", "plots", "analysis", "evaluation", "export", "earlier",
)  # fmt: skip
"""What a run writes or moves, beside its configuration; where that is missing, they are somebody's, and not a run's."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system says that knows no locks; a run there is not guarded, but it runs."""

ANOTHER = "give another hydra.run.dir"


class FolderError(ValueError):
    """A folder that this run must leave as it is."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder belongs to this process until it ends, in whatever way: the system takes back a dead process's lock.

    A record lock (`lockf`), which processes that are forked later, such as those that load data, do not inherit.

    Raises:
        FolderError: another process holds it.
        SpecialFileError: it holds a link or a special file.
        OSError: the folder cannot be made, or not be written to.
    """
    made = not folder.exists()
    check_plain(folder)
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / LOCK
    if place.is_dir():
        raise FolderError(f"{str(place)!r} is a folder, where this run writes a file: {ANOTHER}")
    descriptor = _locked(place)
    try:
        remove_parts(folder)
        yield
    finally:
        with suppress(OSError):  # a full disk or a vanished folder is told by what happened in between
            place.unlink()
            if made and not any(folder.iterdir()):
                folder.rmdir()
        os.close(descriptor)


def _locked(place: Path) -> int:
    """The open, locked file."""
    while True:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        if os.fstat(descriptor).st_nlink > 1:
            os.close(descriptor)
            raise FolderError(f"{str(place)!r} has another name elsewhere (a hard link): remove it")
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            if error.errno in NO_LOCKS:
                return descriptor
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise FolderError(
                f"hydra.run.dir={str(place.parent)!r} is in use by another run ({holder or 'which has just begun'}):"
                f" wait for it to end, or {ANOTHER}"
            ) from None
        if _is_there(place, descriptor):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return descriptor
        os.close(descriptor)  # its holder removed it just now: what was locked is nobody's file


def _is_there(place: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(place.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def check_own(folder: Path, experiment: str) -> None:
    """Refuse a folder whose content is not this run's to go on with. (Settings are compared stage by stage, later.)

    Raises:
        FolderError: it holds another experiment, a finished run without its checkpoints, or files that no run wrote.
    """
    place = folder / CONFIG
    if not place.is_file():
        if strange := [name for name in WRITTEN if (folder / name).exists()]:
            raise FolderError(
                f"hydra.run.dir={str(folder)!r} holds {strange[0]} and no {CONFIG}, so it is no run folder: {ANOTHER}"
            )
        return
    theirs = _experiment(place)
    if theirs != experiment:
        raise FolderError(
            f"hydra.run.dir={str(folder)!r} holds a run of experiment {theirs!r}, and this is {experiment!r}: {ANOTHER},"
            f" or give the command of that run to go on with it"
        )
    if (folder / RESULTS).is_file() and not (folder / "checkpoints" / "train.json").is_file():
        raise FolderError(
            f"hydra.run.dir={str(folder)!r} holds a finished run without its checkpoints, whose results would be"
            f" overwritten: {ANOTHER}"
        )


def _experiment(place: Path) -> str:
    config: Any = None
    with suppress(DocumentError):
        config = read_yaml(place)
    if not isinstance(config, dict) or not isinstance(config.get("experiment"), str):
        raise FolderError(f"{str(place)!r} was not written by a run: {ANOTHER}")
    experiment: str = config["experiment"]
    return experiment
