"""A signal that asks for the end (preemption, Ctrl-C): the batch at hand is finished, a checkpoint written, then it ends."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from qat_lightning.training.process.signals import ASKING
from qat_lightning.training.process.watchdog import Watchdog


class StoppedBySignal(SystemExit):
    """The run has been asked to end and has written what it needs to go on.

    Ends the program with 128 + signal, as a shell tells it. Another process than the first ends with 0: Lightning kills
    them all when one that it has started ends with anything else, and the first may not be through.
    """

    def __init__(self, number: int, step: int, first_process: bool = True) -> None:
        super().__init__(128 + number if first_process else 0)
        self.name, self.step = signal.Signals(number).name, step


class Stopping:
    """`with Stopping() as stopping:` from `stopping.begin()` on the first SIGTERM, SIGUSR1 or SIGINT leaves its number in
    `stopping.signal`; before that, when there is nothing to save, it does what it does without this.

    The watchdog ends the program where that takes too long, and at a second signal. Signals that the program was started
    to ignore stay ignored. At the end the handlers from before are back, and a signal that nobody has stopped for is sent
    again.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._begun = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}
        self._watchdog = Watchdog()

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():  # Python allows no other one to set handlers
            heeded = [number for number in ASKING if signal.getsignal(number) != signal.SIG_IGN]
            # before processes are forked to load data, which must not end with the first signal either
            self._before = {number: signal.signal(number, self._note) for number in heeded}
            self._watchdog.__enter__()
        return self

    def begin(self) -> None:
        """From here on there is something to lose: a signal waits for the end of the step."""
        self._begun = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.end()
        self._restore()

    def end(self) -> None:
        """Nothing more will be lost: from here on a signal does what it does without this, at once."""
        self._restore()
        if self.signal:
            number, self.signal = self.signal, 0
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before, self._begun = {}, False
        self._watchdog.__exit__()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A loader's worker, forked with this handler and signalled with the whole group: its batches are still
            # needed. Its own end comes from the process that started it; a second signal is heeded. (For SIGTERM torch
            # puts a handler of its own in the place of this one, and the worker ends.)
            signal.signal(number, signal.SIG_DFL)
        elif self._begun:
            self.signal = self.signal or number
            self._watchdog.heeded()
        elif callable(before := self._before.get(number)):
            before(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(self._process, number)
