"""End the program with one message and exit code 1 at any error; with a traceback only if the error is a bug."""

from __future__ import annotations

import atexit
import faulthandler
import multiprocessing
import os
import re
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qat_lightning.commands.terminal import EndedBySignal
from qat_lightning.config.instantiate import suggest
from qat_lightning.config.schema import CONF, ConfigError
from qat_lightning.config.validation import unknown_key
from qat_lightning.io.documents import read_json
from qat_lightning.io.external_errors import explain, one_line, same_command
from qat_lightning.io.screen import tell

HYDRA_TRACEBACK = "HYDRA_FULL_ERROR"
USER_TRACEBACK = "QAT_LIGHTNING_FULL_ERROR"
"""Environment variable with the user's value of HYDRA_FULL_ERROR, which the command line sets to 1 for Hydra. The other
processes of the run inherit both."""
BUG = """{line}
This is a bug in qat_lightning. Please report it with the traceback above, the command, the run folder's config.yaml (or the
output of `--cfg job`) and the versions of torch, lightning and transformers (`pip list`)."""
HINT = f"({HYDRA_TRACEBACK}=1 shows the traceback)"
WITH_ADVICE = ("NonFiniteError", "JobError")
"""Names of errors whose message says how to continue; their modules import torch, or this module."""

EXIT = 20.0
"""Seconds that Python may take to exit after the message."""

NULL = open(os.devnull, "w")  # noqa: SIM115 (faulthandler needs it until the process ends)


class ReportedExit(SystemExit):
    """The end of the program, whose reason was printed."""


class ErrorExit(ReportedExit):
    """The end of the program by an error; a sweep continues with the next job."""


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn each exception of the block into one message and ErrorExit with code 1, or ReportedExit after a signal."""
    try:
        yield
    except EndedBySignal as ended:
        _report_stop(f"stopped by {ended.name}")
        raise ReportedExit(ended.code) from None
    except SystemExit as ended:
        if isinstance(ended, ReportedExit) or not isinstance(ended.__context__, KeyboardInterrupt):
            raise
        _report_stop("stopped")  # Lightning turns Ctrl-C into SystemExit
        raise ReportedExit(ended.code) from None
    except KeyboardInterrupt:
        _report_stop("stopped")
        raise ReportedExit(1) from None
    except Exception as error:
        _report_error(error)
        raise ErrorExit(1) from None


def error_message(error: BaseException) -> str | None:
    """Return the message for an error of the configuration, the data or the machine; None for a bug of this package."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _hydra_message(error)
    if not _is_own(error) and (message := explain(error)):
        return message
    if not isinstance(error, ValueError | OSError):
        return None
    return one_line(error) if "in DataLoader worker process" in str(error) else str(error).replace("\n", " ")


def _report_error(error: Exception) -> None:
    message = error_message(error)
    shown = os.environ.get(USER_TRACEBACK, os.environ.get(HYDRA_TRACEBACK, "0")) not in ("", "0")
    if message is None:
        message, shown = BUG.format(line=f"{type(error).__name__}: {one_line(error)}"), True
    if shown:
        traceback.print_exception(error)
    advice = "" if type(error).__name__ in WITH_ADVICE else _how_to_continue()
    _print(message, advice, *([] if shown else [HINT]))
    _remove_empty_folder()
    _limit_exit_time()


def _is_own(error: BaseException) -> bool:
    """Return whether this package raised the error, with a better message than that of its cause."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__) if error.__traceback__ else [(None, 0)]
    return isinstance(error, ConfigError) or (
        isinstance(error, ValueError) and frame is not None and frame.f_globals["__name__"].startswith("qat_lightning.")
    )


def _hydra_message(error: BaseException) -> str:
    """Return Hydra's message without its search path, and with the valid keys where one is mistyped."""
    if isinstance(error, OverrideParseException):
        reason = str(error).splitlines()[0]
        return (
            f"{error.override!r} cannot be read ({reason}): write key=value, with quotation marks around a value with"
            " brackets or spaces"
        )
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__ or cause.__context__
    if not isinstance(cause, OmegaConfBaseException):
        message = re.split(r"\n*Config search path", str(error))[0]
        groups = ", ".join(sorted(path.name for path in CONF.iterdir() if path.is_dir()))
        return f"a group ({groups}): {message}" if message.startswith("Config group override") else message
    key = re.search(r"Key '([^']+)' (?:is )?not in", str(cause))
    if key and isinstance(cause.parent_node, DictConfig):
        return unknown_key(str(cause.full_key), map(str, cause.parent_node.keys()))
    node = cause.parent_node if cause.key is None else cause.child_node
    if re.match(r"Invalid (type|value) assigned|Cannot (assign|merge)|field '.*' is not Optional", str(cause)):
        if isinstance(node, DictConfig):
            return f"{cause.full_key} is a group of keys: set {cause.full_key}.KEY=…, {suggest('', map(str, node))}"
        if isinstance(node, ListConfig):
            return f"{cause.full_key} must be a list: set {cause.full_key}=[one,other]"
    return f"{cause.full_key or 'configuration'}: {str(cause).splitlines()[0]}"


def _print(*lines: str) -> None:
    tell("qat_lightning: " + "\n".join(filter(None, lines)))


def _report_stop(what: str) -> None:
    """Print one line, from the first of the processes that the signal has reached."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        _print(". ".join(filter(None, [what, _how_to_continue()])))
    _remove_empty_folder()
    _limit_exit_time()


def _limit_exit_time() -> None:
    """Kill the loader workers, for which Python would wait at its exit, and limit the time of that exit.

    They have nothing to save, and one that waits for a lock of a killed process ends by no other signal.
    """
    atexit.register(faulthandler.dump_traceback_later, EXIT, exit=True, file=NULL)
    with _default_child_handler():
        for process in (children := multiprocessing.active_children()):
            process.kill()
        for process in children:
            process.join(1.0)


@contextmanager
def _default_child_handler() -> Iterator[None]:
    """Suspend torch's handler, which raises an error for each killed loader worker."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)


def _how_to_continue() -> str:
    """Return how an unfinished run is continued; empty if no run has begun, or it is finished."""
    folder = _run_folder()
    if folder is None or not (folder / "checkpoints").is_dir():
        return ""
    with suppress(OSError, ValueError, KeyError, TypeError):  # missing or damaged: the run is not finished
        if read_json(folder / "metrics.json")["status"] in ("finished", "gate missed"):
            return ""
    return f"T{same_command(folder)[1:]} continues from what was finished or saved."


def _run_folder() -> Path | None:
    """Return the folder of the current run, or None before Hydra has chosen one."""
    if not HydraConfig.initialized() or OmegaConf.is_missing(HydraConfig.get().runtime, "output_dir"):
        return None
    return Path(HydraConfig.get().runtime.output_dir).resolve()


def _remove_empty_folder() -> None:
    """Remove the folder of a run that never began."""
    folder = _run_folder()
    if folder is not None and folder != Path.cwd() and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
