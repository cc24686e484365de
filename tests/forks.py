"""Forked processes for tests of signals."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn


def forked_sleeper() -> int:
    """Fork a process as a loader worker is forked, and return its number. It sleeps on after a handled signal."""
    if worker := os.fork():
        return worker
    time.sleep(20)
    time.sleep(20)
    os._exit(0)


def check_survives_one_signal(worker: int, number: signal.Signals) -> None:
    """Check that the first signal leaves the process alive and the second ends it."""
    time.sleep(0.05)
    os.kill(worker, number)
    time.sleep(0.05)
    assert os.waitpid(worker, os.WNOHANG) == (0, 0)
    os.kill(worker, number)
    assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == -number


def run_and_exit(child: Callable[[], object]) -> NoReturn:
    """Call `child` in a forked process and end the process: 0, the code of SystemExit, or 1 after a traceback."""
    code = 1
    try:
        child()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_code(child: Callable[[], object], seconds: float = 15) -> int:
    """Fork a process that calls `child` and return its exit code: 7 if `child` returns or raises."""
    process = os.fork()
    if not process:
        with suppress(BaseException):
            child()
        os._exit(7)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise AssertionError(f"the process did not end within {seconds} seconds")
