"""Explain errors that come from outside the program (disk, memory, permissions, other processes), with the remedy.

An error is recognized by its class, its number or its message, anywhere in its chain of causes, because an exception that a
logger or a callback raises during shutdown hides the first one. This module imports no torch, so that the command line
starts fast.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Iterator

SMALLER_BATCH = (
    "set a smaller data.batch_size and increase trainer.accumulate_grad_batches by the same factor, which keeps the rows of"
    " a step"
)
MEMORY = (
    f"out of memory ({{line}}): {SMALLER_BATCH}; or a smaller data.evaluation_batch_size or data.max_length; or a smaller"
    " model"
)
DISK = "no space left on the disk, cannot write{place} ({line}): free some space; files that were finished before are intact"
PLACE = "cannot write{place} ({line}): set hydra.run.dir to a folder that you may write to"
WORKER = (
    "a process that loads data has died ({line}), most often because memory or shared memory ran out: set a smaller"
    " data.batch_size, fewer data.num_workers, or data.num_workers=0, which needs none"
)
PROCESS = (
    "another process of this run has ended or cannot be reached ({line}). Its message is above; if there is none, it was"
    f" killed, most often because memory ran out: {SMALLER_BATCH}"
)
DAMAGED = "a file of weights cannot be read ({line}): it is damaged; copy it again, or remove it from the run folder"
MISSING = "{line}: install it with pip, or leave out the setting that needs it"

NUMBERS = {errno.ENOSPC: DISK, errno.ENOMEM: MEMORY} | dict.fromkeys(
    (errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR), PLACE
)
CLASSES = {
    "MemoryError": MEMORY,
    "DistError": PROCESS,
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
MESSAGE_CLASSES = ("OSError", "RuntimeError", "SafetensorError", "UnpicklingError", "ArrowException")
"""Names of classes that are recognized by their message (`MESSAGES`)."""

STOP_SIGNALS = [
    number for name in ("SIGTERM", "SIGUSR1", "SIGINT") if (number := getattr(signal, name, None)) is not None
]
"""Signals of schedulers and users that ask a program to stop; Windows has no SIGUSR1."""

SWEEP = "QAT_LIGHTNING_SWEEP"
"""Environment variable with the folder of the sweep whose job this process runs; all processes of the job inherit it."""


def same_command(folder: object) -> str:
    """Name the command that continues a run: with the folder of the run, or of the sweep that the run belongs to."""
    sweep = os.environ.get(SWEEP)
    return (
        f"the same command with hydra.sweep.dir={sweep}" if sweep else f"the same command with hydra.run.dir={folder}"
    )


def another_folder() -> str:
    """Name the setting that gives a run another folder."""
    return f"another {'hydra.sweep.dir' if SWEEP in os.environ else 'hydra.run.dir'}"


def explain(error: BaseException) -> str | None:
    """Return one message with the remedy, or None for an error that this module does not recognize.

    >>> explain(ModuleNotFoundError("No module named 'tensorboard'"))
    "No module named 'tensorboard': install it with pip, or leave out the setting that needs it"
    """
    for part in _chain(error):
        if pattern := _pattern(part):
            place = getattr(part, "filename2", None) or getattr(part, "filename", None)  # the new name of a renaming
            return pattern.format(line=one_line(part), place=f" to {str(place)!r}" if place else "")
    return None


def one_line(error: BaseException) -> str:
    """Return the message in one line; of an error that a loader worker passed on with its traceback, the last line."""
    text = str(error)
    if "in DataLoader worker process" in text:
        text = text.strip().rsplit("\n", 1)[-1]
    first = " ".join(text.split()) or type(error).__name__
    return first if len(first) <= 300 else f"{first[:300]}…"


def _pattern(error: BaseException) -> str | None:
    names = [kind.__name__ for kind in type(error).__mro__]
    for name in names:
        if name in CLASSES:
            return CLASSES[name]
    if isinstance(error, OSError) and error.errno in NUMBERS:
        return NUMBERS[error.errno]
    if set(names) & set(MESSAGE_CLASSES):
        return next((pattern for expression, pattern in MESSAGES if re.search(expression, str(error))), None)
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes, explicit or implicit."""
    seen: list[BaseException] = []
    part: BaseException | None = error
    while part is not None and part not in seen:
        seen.append(part)
        yield part
        part = part.__cause__ or (None if part.__suppress_context__ else part.__context__)
