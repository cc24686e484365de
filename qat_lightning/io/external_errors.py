"""What the world does to a run, in words with the remedy; without torch, so that the command line can import it first.

An error is known by its class, its number or its message, anywhere in its chain: what a logger or a callback says while a
run is taken down hides what took it down.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

MEMORY = (
    "out of memory ({line}): give a smaller data.batch_size with as much more of trainer.accumulate_grad_batches, which"
    " leaves the rows of a step as they are; a smaller data.evaluation_batch_size or data.max_length; or a smaller model"
)
DISK = "no room is left on the disk{place} ({line}): make room; what was written before is whole"
LIMIT = "a file has reached the largest size allowed here{place} ({line}): raise the limit, see `ulimit -f`"
PERMISSION = (
    "no permission{place} ({line}): give a folder in which you may write, as hydra.run.dir=… for what a run writes"
)
NOT_A_FOLDER = "a file is in the way of a folder{place} ({line}): move it, or give another hydra.run.dir"
NOT_A_FILE = "a folder is in the way of a file{place} ({line}): move it, or give another hydra.run.dir"
WORKER = (
    "a process that loads data has died ({line}); most often memory, or shared memory, has run out: give a smaller"
    " data.batch_size, fewer data.num_workers, or data.num_workers=0, which needs none"
)
PROCESS = (
    "another process of this run has ended or cannot be reached ({line}): what it said stands above; if it said nothing,"
    " it was killed, most often because memory ran out: give a smaller data.batch_size with as much more of"
    " trainer.accumulate_grad_batches"
)
DAMAGED = "a file of weights cannot be read ({line}): it is damaged; copy it again, or remove it from the run folder"
MISSING = "{line}: install it with pip, or leave out what asks for it"

NUMBERS = {
    errno.ENOSPC: DISK,
    errno.EDQUOT: DISK,
    errno.EFBIG: LIMIT,
    errno.EROFS: PERMISSION,
    errno.EACCES: PERMISSION,
    errno.EPERM: PERMISSION,
    errno.EEXIST: NOT_A_FOLDER,
    errno.ENOTDIR: NOT_A_FOLDER,
    errno.EISDIR: NOT_A_FILE,
    errno.ENOMEM: MEMORY,
}
CLASSES = {
    "MemoryError": MEMORY,
    "ArrowMemoryError": MEMORY,
    "OutOfMemoryError": MEMORY,
    "DistBackendError": PROCESS,
    "DistNetworkError": PROCESS,
    "DistStoreError": PROCESS,
    "MisconfigurationException": "{line}",
    "ModuleNotFoundError": MISSING,
}
MESSAGES = (
    (r"can't allocate memory|out of memory|ALLOC_FAILED", MEMORY),
    (r"No space left on device|Disk quota exceeded|file write failed|PytorchStreamWriter failed", DISK),
    (r"DataLoader worker \(pid", WORKER),
    (r"gloo|NCCL|Connection (closed|reset) by peer|Broken pipe", PROCESS),
    (r"PytorchStreamReader failed|Error while deserializing|Weights only load failed", DAMAGED),
)
UNKNOWN = ("RuntimeError", "SafetensorError", "UnpicklingError", "AcceleratorError", "ArrowException")
"""Classes whose message alone tells what it is about."""

SWEEP = "QAT_LIGHTNING_SWEEP"
"""The folder of the sweep that this process runs a job of; all processes of the job inherit it."""


def same_command(folder: object) -> str:
    """Name the command that continues a run: with the folder of the run, or of the sweep that the run is a job of."""
    sweep = os.environ.get(SWEEP)
    return (
        f"the same command with hydra.sweep.dir={sweep}" if sweep else f"the same command with hydra.run.dir={folder}"
    )


def another_folder() -> str:
    """Name the setting that gives a run another folder."""
    return f"another {'hydra.sweep.dir' if SWEEP in os.environ else 'hydra.run.dir'}"


def explained(error: BaseException) -> str | None:
    """One message with the remedy, or None where this module does not know the error."""
    for part in _chain(error):
        if told := _pattern(part):
            place = getattr(part, "filename2", None) or getattr(part, "filename", None)  # of a renaming the new name
            return told.format(line=line(part), place=f" for {str(place)!r}" if place else "")
    return None


def line(error: BaseException) -> str:
    """The message in one line; of one that a process loading data has passed on, with its traceback, the end."""
    text = str(error)
    if "in DataLoader worker process" in text:
        text = text.strip().rsplit("\n", 1)[-1]
    first = " ".join(text.split()) or type(error).__name__
    return first if len(first) <= 300 else f"{first[:300]}…"


def _pattern(error: BaseException) -> str | None:
    for kind in type(error).__mro__:
        if kind.__name__ in CLASSES:
            return CLASSES[kind.__name__]
    if isinstance(error, OSError) and error.errno in NUMBERS:
        return NUMBERS[error.errno]
    if isinstance(error, OSError) or any(kind.__name__ in UNKNOWN for kind in type(error).__mro__):
        return next((told for words, told in MESSAGES if re.search(words, str(error))), None)
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, then what caused it or was being handled when it was raised."""
    seen: list[BaseException] = []
    part: BaseException | None = error
    while part is not None and part not in seen:
        seen.append(part)
        yield part
        part = part.__cause__ or (None if part.__suppress_context__ else part.__context__)
