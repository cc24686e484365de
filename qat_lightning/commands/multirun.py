"""The jobs of a sweep (`--multirun`), one after the other in one process: one that fails leaves the others alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import read_write

from qat_lightning.commands.errors import Refused, mistakes_in_words
from qat_lightning.config.command_line import MULTIRUN, is_override
from qat_lightning.io.external_errors import SWEEP


class JobError(ValueError):
    """A job has failed, and has said why; so Hydra, its launchers and sweepers see it as failed."""


@dataclass
class Job:
    """One that has ended."""

    number: int
    overrides: list[str]
    failed: bool
    sweep: Path


JOBS: list[Job] = []
"""Those of the sweep at hand that ran in this process. Hydra's own sweeper returns none."""


@contextmanager
def all_jobs() -> Iterator[None]:
    """Jobs that have failed are told together, when all have ended.

    Raises:
        JobError: how many of how many, and which.
    """
    JOBS.clear()
    try:
        yield
    except JobError:
        if not JOBS:  # another launcher: each in a process of its own
            raise
    if failed := [job for job in JOBS if job.failed]:
        common = set.intersection(*(set(job.overrides) for job in JOBS)) if len(JOBS) > 1 else set()
        own = {job.number: " ".join(word for word in job.overrides if word not in common) for job in failed}
        which = ", ".join(f"job {number}" + (f" ({words})" if words else "") for number, words in own.items())
        raise JobError(
            f"{len(failed)} of {len(JOBS)} jobs failed, for the reasons above: {which}\nThe same command with"
            f" hydra.sweep.dir={JOBS[0].sweep} continues with what is not finished."
        )


def one_job(run: Callable[[], float]) -> float:
    """What the job returns.

    Raises:
        JobError: it has failed; the words for it are told.
    """
    hydra: Any = HydraConfig.get()
    ended = Job(int(hydra.job.num), list(hydra.overrides.task), True, Path(hydra.sweep.dir).resolve())
    result = None
    _speak_for_one_job()
    os.environ[SWEEP] = str(ended.sweep)
    try:
        with mistakes_in_words():
            result = run()
    except Refused:
        pass  # raised below, without the traceback, which holds the job's model and data
    finally:
        del os.environ[SWEEP]
    _leave_processes()
    ended.failed = result is None
    JOBS.append(ended)
    if result is None:
        raise JobError(f"job {ended.number} failed, for the reason that it has told")
    return result


def _speak_for_one_job() -> None:
    """In a sweep, make this process's command line that of the one job at hand.

    Lightning starts the other processes of a job with it, and in the folder `hydra.run.dir`; left alone they would each
    begin the whole sweep, in a second folder.
    """
    config: Any = HydraConfig.instance().cfg
    with read_write(config.hydra):
        config.hydra.run.dir = str(Path(config.hydra.runtime.output_dir).resolve())
    flags = [word for word in sys.argv[1:] if word not in MULTIRUN and not is_override(word)]
    sys.argv = [sys.argv[0], *flags, *map(str, config.hydra.overrides.task)]


def _leave_processes() -> None:
    """End and forget the processes of the job that ended, so that the sweep's next job starts its own."""
    if "torch" not in sys.modules:  # it was refused before
        return
    import torch.distributed

    from qat_lightning.training.process.supervision import leave_the_others

    leave_the_others()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
