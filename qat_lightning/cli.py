"""The command line: Hydra composes, the schema checks, the run runs; a mistake ends in one message and exit code 1."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, read_write
from omegaconf.errors import OmegaConfBaseException

from qat_lightning.config import check, register_schema, resolve, suggest

PACKAGE = Path(__file__).resolve().parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
"""Inside an installed wheel; beside the package in a checkout."""

FULL = "HYDRA_FULL_ERROR"
TRACEBACK = os.environ.get(FULL, "0") not in ("", "0")
MULTIRUN = ("-m", "--multirun")
HINT = f"({FULL}=1 shows the traceback)"

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch's notes on DDP from C++, which no filter reaches
register_schema()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _train(config: DictConfig) -> float:
    with _mistakes_in_words():
        plain = resolve(config)
        check(plain)
        from qat_lightning.run import run  # after the checks: its imports take seconds

        folder, swept = Path(HydraConfig.get().runtime.output_dir), HydraConfig.get().mode == RunMode.MULTIRUN
        if swept:
            _speak_for_one_job()
        try:
            return float(run(plain, folder, list(HydraConfig.get().overrides.task))["student"])
        finally:
            if swept:
                _leave_process_group()


def train() -> None:
    """`python -m qat_lightning` and `qat-train`."""
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in MULTIRUN)  # Hydra wants flags before overrides
    with _mistakes_in_words():
        asked = os.environ.get(FULL)
        os.environ[FULL] = "1"  # let Hydra pass errors on instead of printing them
        try:
            _train()
        finally:
            os.environ[FULL] = asked or "0"


@contextmanager
def _mistakes_in_words() -> Iterator[None]:
    """What a user can mend ends the program with one message and exit code 1, without a traceback."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        _drop_empty_folder()
        if TRACEBACK:
            traceback.print_exception(error)
        print(f"qat_lightning: {_told(error)}", *([] if TRACEBACK else [HINT]), sep="\n", file=sys.stderr)
        raise SystemExit(1) from None


def _told(error: BaseException) -> str:
    """Hydra's message in short: with the valid choices where a key is mistyped, without its search path."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__ or cause.__context__
    if not isinstance(cause, OmegaConfBaseException):
        return re.split(r"\n*Config search path", str(error))[0]
    key = re.search(r"Key '([^']+)' (?:is )?not in", str(cause))
    if key and isinstance(cause.parent_node, DictConfig):
        return f"unknown key {cause.full_key!r}: {suggest(key.group(1), map(str, cause.parent_node.keys()))}"
    return f"{cause.full_key or 'configuration'}: {str(cause).splitlines()[0]}"


def _drop_empty_folder() -> None:
    """A run that never began leaves no run folder."""
    if HydraConfig.initialized():
        folder = HydraConfig.get().runtime.output_dir
        if folder and Path(folder).is_dir() and not any(Path(folder).iterdir()):
            Path(folder).rmdir()


def _speak_for_one_job() -> None:
    """In a sweep, make this process's command line that of the one job at hand.

    Lightning starts the other processes of a job with it, and in the folder `hydra.run.dir`; left alone they would each
    begin the whole sweep, in a second folder.
    """
    config: Any = HydraConfig.instance().cfg
    with read_write(config.hydra):
        config.hydra.run.dir = str(Path(config.hydra.runtime.output_dir).resolve())
    flags = [word for word in sys.argv[1:] if word not in MULTIRUN and not _is_override(word)]
    sys.argv = [sys.argv[0], *flags, *map(str, config.hydra.overrides.task)]


def _is_override(word: str) -> bool:
    return word.startswith("~") or ("=" in word and not word.startswith("-"))


def _leave_process_group() -> None:
    """Forget the processes of the job that ended, so that the sweep's next job starts its own."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
