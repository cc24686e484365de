"""Stop a training after the current batch, with a checkpoint, when a signal asks for it (preemption, Ctrl-C)."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from qat_lightning.io.external_errors import STOP_SIGNALS
from qat_lightning.training.process.watchdog import Watchdog


class StoppedBySignal(SystemExit):
    """The end of a run that was asked to stop and has written its checkpoint.

    The exit code is 128 + signal, as in a shell. A process other than the first exits with 0, because Lightning kills all
    processes when one that it has started exits with anything else, and the first may still be writing.
    """

    def __init__(self, number: int, step: int, first_process: bool = True) -> None:
        super().__init__(128 + number if first_process else 0)
        self.name, self.step = signal.Signals(number).name, step


class GracefulStop:
    """Record the first stop signal of a training, to be acted on between two steps.

    Between `begin()` and `end()` the first SIGTERM, SIGUSR1 or SIGINT sets `signal`. Before and after, when there is
    nothing to save, signals have their former effect. The watchdog ends the process if stopping takes too long, and at a
    second signal. Signals that the program was started to ignore stay ignored. Python allows handlers in the main thread
    only; in another thread this does nothing.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._begun = False
        self._process = os.getpid()
        self._handlers_before: dict[int, Any] = {}
        self._watchdog = Watchdog()

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            # Set before loader workers are forked: they must outlive the first signal as well.
            numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._handlers_before = {number: signal.signal(number, self._handle) for number in numbers}
            self._watchdog.__enter__()
        return self

    def begin(self) -> None:
        """Let signals wait for the end of the current step from now on."""
        self._begun = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.end()
        self._restore_handlers()

    def end(self) -> None:
        """Give signals their former effect again, and send one that nobody has acted on a second time."""
        self._restore_handlers()
        if self.signal:
            number, self.signal = self.signal, 0
            os.kill(os.getpid(), number)

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers_before, self._begun = {}, False
        self._watchdog.__exit__()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A loader worker inherits this handler and gets the signal of its process group. Its batches are still
            # needed, so only a second signal ends it. (For SIGTERM torch installs its own handler, and the worker ends.)
            signal.signal(number, signal.SIG_DFL)
        elif self._begun:
            self.signal = self.signal or number
            self._watchdog.confirm_handled()
        elif callable(before := self._handlers_before.get(number)):
            before(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(self._process, number)
