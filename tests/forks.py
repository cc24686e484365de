"""A process that is forked as those that load data are."""

import os
import signal
import time


def forked_sleeper() -> int:
    """Its number. It sleeps on after a signal that its handlers leave it alive with."""
    if worker := os.fork():
        return worker
    time.sleep(20)
    time.sleep(20)
    os._exit(0)


def check_outlives_one_signal_and_no_second(worker: int, number: signal.Signals) -> None:
    time.sleep(0.05)
    os.kill(worker, number)
    time.sleep(0.05)
    assert os.waitpid(worker, os.WNOHANG) == (0, 0)
    os.kill(worker, number)
    assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == -number
