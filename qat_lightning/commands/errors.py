"""Whatever ends the program ends it with one message, and exit code 1."""

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
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qat_lightning.commands.terminal import EndedBySignal
from qat_lightning.config.allowed_targets import KEY
from qat_lightning.config.instantiate import suggest
from qat_lightning.config.schema import CONF, ConfigError
from qat_lightning.io.documents import read_json
from qat_lightning.io.external_errors import explained, line, same_command
from qat_lightning.io.screen import tell

FULL = "HYDRA_FULL_ERROR"
ASKED = "QAT_LIGHTNING_FULL_ERROR"
"""What the user said of FULL, which the command line sets for Hydra, as the run's other processes inherit it."""
TRACEBACK = os.environ.get(ASKED, os.environ.get(FULL, "0")) not in ("", "0")
BUG = """{line}
This is a mistake in qat_lightning, not in what you gave it. Please report it with the traceback above, the command, the
run folder's config.yaml (or what `--cfg job` prints) and what `pip list` says of torch, lightning and transformers."""
HINT = f"({FULL}=1 shows the traceback)"


EXIT = 20.0
"""Seconds for Python to end after a message; the exit code is 1 all the same."""

NOWHERE = open(os.devnull, "w")  # noqa: SIM115 (until the very end)


class Told(SystemExit):
    """The program ends, and has said why."""


class Refused(Told):
    """It was a mistake, or the world: a sweep goes on with the next job."""


@contextmanager
def mistakes_in_words() -> Iterator[None]:
    """Whatever ends the program ends it with one message and exit code 1; with a traceback where the mistake is ours."""
    try:
        yield
    except EndedBySignal as ended:
        _say_stopped(f"stopped by {ended.name}")
        raise Told(ended.code) from None
    except SystemExit as ended:
        if isinstance(ended, Told) or not isinstance(ended.__context__, KeyboardInterrupt):
            raise
        _say_stopped("stopped")  # Lightning's answer to Ctrl-C
        raise Told(ended.code) from None
    except KeyboardInterrupt:
        _say_stopped("stopped")
        raise Told(1) from None
    except Exception as error:
        message, shown = told(error), TRACEBACK
        if message is None:
            message, shown = BUG.format(line=f"{type(error).__name__}: {line(error)}"), True
        if shown:
            traceback.print_exception(error)
        explains = type(error).__name__ in (
            "NonFiniteError",
            "JobError",
        )  # by name: their modules import torch, or this one
        _say(message, "" if explains else _goes_on(), *([] if shown else [HINT]))
        _drop_empty_folder()
        end_in_time()
        raise Refused(1) from None


def told(error: BaseException) -> str | None:
    """The one message for what a user can mend: a mistake in a configuration or in data, or the world gone wrong.

    None for anything else, which is a mistake of this package.
    """
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _of_hydra(error)
    if not _is_own(error) and (message := explained(error)):
        return message
    if not isinstance(error, ValueError | OSError):
        return None
    return line(error) if "in DataLoader worker process" in str(error) else str(error).replace("\n", " ")


def _is_own(error: BaseException) -> bool:
    """Whether this package raised it in words, which say more than what caused it."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__) if error.__traceback__ else [(None, 0)]
    return isinstance(error, ConfigError) or (
        isinstance(error, ValueError) and frame is not None and frame.f_globals["__name__"].startswith("qat_lightning.")
    )


def _of_hydra(error: BaseException) -> str:
    """Hydra's message in short: with the valid choices where a key is mistyped, without its search path."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OverrideParseException):
        reason = str(error).splitlines()[0]
        return (
            f"{error.override!r} cannot be read ({reason}): give key=value, in quotes where it holds brackets or spaces"
        )
    if not isinstance(cause, OmegaConfBaseException):
        message = re.split(r"\n*Config search path", str(error))[0]
        groups = ", ".join(sorted(path.name for path in CONF.iterdir() if path.is_dir()))
        return f"a group ({groups}): {message}" if message.startswith("Config group override") else message
    key = re.search(r"Key '([^']+)' (?:is )?not in", str(cause))
    if key and key.group(1) == KEY:
        return f"{KEY} can be given on the command line only, never in a file"
    if key and isinstance(cause.parent_node, DictConfig):
        return f"unknown key {cause.full_key!r}: {suggest(key.group(1), map(str, cause.parent_node.keys()))}"
    node = cause.parent_node if cause.key is None else cause.child_node
    if re.match(r"Invalid (type|value) assigned|Cannot (assign|merge)|field '.*' is not Optional", str(cause)):
        if isinstance(node, DictConfig):
            names = suggest("", map(str, node))
            return f"{cause.full_key} holds keys, and can be nothing else: give {cause.full_key}.KEY=…, {names}"
        if isinstance(node, ListConfig):
            return f"{cause.full_key} must be a list: give {cause.full_key}=[one,other]"
    return f"{cause.full_key or 'configuration'}: {str(cause).splitlines()[0]}"


def _say(*lines: str) -> None:
    tell("qat_lightning: " + "\n".join(filter(None, lines)))


def _say_stopped(what: str) -> None:
    """In one line, by the first process of those that the signal has reached."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        _say(". ".join(filter(None, [what, _goes_on()])))
    _drop_empty_folder()
    end_in_time()


def end_in_time() -> None:
    """End the processes that load data, for which Python would wait at its exit, and bound the time of that exit.

    They have nothing to save; one that waits for what another held when it was killed ends by no other signal.
    """
    atexit.register(faulthandler.dump_traceback_later, EXIT, exit=True, file=NOWHERE)
    with _deaths_unheard():
        for process in (ended := multiprocessing.active_children()):
            process.kill()
        for process in ended:
            process.join(1.0)


@contextmanager
def _deaths_unheard() -> Iterator[None]:
    """Without torch's handler, which raises for each loading process that is killed."""
    if threading.current_thread() is not threading.main_thread():  # Python allows no other one to set handlers
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)


def _goes_on() -> str:
    """Where a run has begun and not ended, how it goes on."""
    folder = _folder()
    if folder is None or not (folder / "checkpoints").is_dir() or _is_finished(folder):
        return ""
    return f"T{same_command(folder)[1:]} continues from what was finished or saved."


def _is_finished(folder: Path) -> bool:
    try:
        return read_json(folder / "metrics.json")["status"] == "finished"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _folder() -> Path | None:
    """Of the run at hand, where Hydra has got so far."""
    if not HydraConfig.initialized() or OmegaConf.is_missing(HydraConfig.get().runtime, "output_dir"):
        return None
    return Path(HydraConfig.get().runtime.output_dir).resolve()


def _drop_empty_folder() -> None:
    """A run that never began leaves no run folder."""
    folder = _folder()
    if folder is not None and folder != Path.cwd() and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
