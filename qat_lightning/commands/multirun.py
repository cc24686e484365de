"""Run the jobs of a sweep (`--multirun`) one after the other in one process; a job that fails does not end the sweep."""

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

from qat_lightning.commands.errors import ErrorExit, exit_on_error
from qat_lightning.config.command_line import MULTIRUN, is_override
from qat_lightning.io.external_errors import SWEEP


class JobError(ValueError):
    """A job has failed and its error was printed. Hydra, its launchers and its sweepers see the job as failed."""


@dataclass
class Job:
    """A job that has ended."""

    number: int
    overrides: list[str]
    failed: bool
    sweep: Path


JOBS: list[Job] = []
"""The current sweep's jobs that ran in this process. (Hydra's own sweeper returns none.)"""


@contextmanager
def summarize_failures() -> Iterator[None]:
    """Raise JobError, which names all failed jobs, when the sweep has ended."""
    JOBS.clear()
    try:
        yield
    except JobError:
        if not JOBS:  # a launcher that runs each job in another process
            raise
    if failed := [job for job in JOBS if job.failed]:
        common = set.intersection(*(set(job.overrides) for job in JOBS)) if len(JOBS) > 1 else set()
        own = {job.number: " ".join(word for word in job.overrides if word not in common) for job in failed}
        names = ", ".join(f"job {number} ({words})" if words else f"job {number}" for number, words in own.items())
        raise JobError(
            f"{len(failed)} of {len(JOBS)} jobs failed, for the reasons above: {names}\nThe same command with"
            f" hydra.sweep.dir={JOBS[0].sweep} continues with the jobs that are not finished."
        )


def run_job(run: Callable[[], float]) -> float:
    """Run one job and return its result; JobError if it has failed, whose error was printed."""
    hydra: Any = HydraConfig.get()
    job = Job(int(hydra.job.num), list(hydra.overrides.task), True, Path(hydra.sweep.dir).resolve())
    result = None
    _set_command_line()
    os.environ[SWEEP] = str(job.sweep)
    try:
        with exit_on_error():
            result = run()
    except ErrorExit:
        pass  # JobError is raised below, without this traceback, which refers to the job's model and data
    finally:
        del os.environ[SWEEP]
    _end_processes()
    job.failed = result is None
    JOBS.append(job)
    if result is None:
        raise JobError(f"job {job.number} failed, for the reason above")
    return result


def _set_command_line() -> None:
    """Set this process's command line to that of the current job, with which Lightning starts the job's other processes.

    With that of the sweep each of them would begin the whole sweep in a second folder.
    """
    config: Any = HydraConfig.instance().cfg
    with read_write(config.hydra):
        config.hydra.run.dir = str(Path(config.hydra.runtime.output_dir).resolve())
    flags = [word for word in sys.argv[1:] if word not in MULTIRUN and not is_override(word)]
    sys.argv = [sys.argv[0], *flags, *map(str, config.hydra.overrides.task)]


def _end_processes() -> None:
    """End the processes of the job, so that the next job starts its own."""
    if "torch" not in sys.modules:  # the job failed before any was started
        return
    import torch.distributed

    from qat_lightning.training.process.supervision import end_started_processes

    end_started_processes()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
