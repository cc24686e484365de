"""The run folder: one run writes to it at a time, and files that a run did not write stay as they are."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from qat_lightning.io.documents import DocumentError, read_yaml
from qat_lightning.io.files import check_plain, remove_parts

LOCK = ".lock"
WRITTEN = (
    "metrics.json", "report.md", "overrides.yaml", "checkpoints", "logs", "plots", "analysis", "evaluation", "export", "earlier",
)  # fmt: skip
"""Names that a run writes beside its configuration; in a folder without a configuration they are not a run's."""

NO_LOCKS = tuple(getattr(errno, name) for name in ("ENOLCK", "ENOSYS", "EOPNOTSUPP") if hasattr(errno, name))
"""Errors of file systems without locks; a run in such a folder is not protected from a second one."""

ANOTHER = "set another hydra.run.dir"


class FolderError(ValueError):
    """A folder that this run must not change."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Create the folder and lock it until the block, or this process, ends. The system releases a dead process's lock.

    Forked processes, such as loader workers, do not hold the lock. Raises FolderError if another process has it,
    SpecialFileError for a link or a special file in the folder, OSError if it cannot be written to.
    """
    created = not folder.exists()
    check_plain(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = _acquire(folder / LOCK)
    try:
        remove_parts(folder)
        yield
    finally:
        with suppress(OSError):  # a full disk or a missing folder must not hide the error of the block
            (folder / LOCK).unlink()
            if created and not any(folder.iterdir()):
                folder.rmdir()
        lock.release()


def _acquire(place: Path) -> FileLock:
    if place.is_dir():
        raise FolderError(f"{str(place)!r} is a folder, but this run writes a file of that name: {ANOTHER}")
    if place.exists() and place.stat().st_nlink > 1:
        raise FolderError(f"{str(place)!r} is a hard link, through which another file would be changed: remove it")
    lock = FileLock(place, timeout=0.2)  # long enough for one that is just being released
    try:
        lock.acquire()
    except Timeout:
        holder = place.read_text(encoding="utf-8", errors="replace")[:200].strip() if place.is_file() else ""
        raise FolderError(
            f"hydra.run.dir={str(place.parent)!r} is in use by another run ({holder or 'just started'}): wait until it"
            f" ends, or {ANOTHER}"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    with suppress(OSError):  # Windows: a locked file cannot be written to
        place.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
    return lock


def check_own(folder: Path, experiment: str) -> None:
    """Raise FolderError for another experiment, a finished run without its checkpoints, or files that no run wrote.

    (Settings are compared later, stage by stage.)
    """
    place, config = folder / "config.yaml", None
    if not place.is_file():
        if foreign := [name for name in WRITTEN if (folder / name).exists()]:
            raise FolderError(f"hydra.run.dir={str(folder)!r} holds {foreign[0]}, but no {place.name}: {ANOTHER}")
        return
    with suppress(DocumentError):
        config = read_yaml(place)
    recorded = config.get("experiment") if isinstance(config, dict) else None
    if not isinstance(recorded, str):
        raise FolderError(f"{str(place)!r} was not written by a run: {ANOTHER}")
    if recorded != experiment:
        raise FolderError(
            f"hydra.run.dir={str(folder)!r} holds a run of experiment {recorded!r}, and this run is {experiment!r}:"
            f" {ANOTHER}, or continue that run with its own command"
        )
    if (folder / "metrics.json").is_file() and not (folder / "checkpoints" / "train.json").is_file():
        raise FolderError(f"hydra.run.dir={str(folder)!r} holds results, and no checkpoints of them: {ANOTHER}")
