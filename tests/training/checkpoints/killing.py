"""Kill runs with SIGKILL and start them again, many in one go.

`python -m tests.training.checkpoints.killing` reads a plan.

Each start is a fork of a process that has imported everything and computed nothing, so it costs no imports.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.forks import run_and_exit

ROOT = Path(__file__).parents[3]
# 4 steps of the teacher, 16 with intervention, 20 without; checkpoints, validations and epochs (3 batches) interleave
FORTY = (
    "stages.intervene.max_steps=16", "stages.intervene.validate_every=5", "stages.train.max_steps=36",
    "stages.train.validate_every=4", "export.packed=false", "model.architecture.num_hidden_layers=1",
    *(f"stages.{stage}.checkpoint_every=3" for stage in ("teacher", "intervene", "train")),
)  # fmt: skip

PORTS = itertools.count(15000 + os.getpid() * 211 % 15000)  # neighbours in number are not neighbours in ports
ONE_AT_A_TIME = threading.Lock()
"""A process that is forked while a port is tried holds it from then on."""
Config = dict[str, Any]
Kill = tuple[str, int, list[str]]
"""(where, its number counted from 1, overrides that change no result); where: a name in `PLACES`."""


def killed(settings: Sequence[str], kills: Sequence[Kill], processes: int = 1, timeout: float = 170) -> list[str]:
    """The hashes of the students: first that of a run that nobody killed, then those of the runs killed and continued."""
    plan = json.dumps({"settings": list(settings), "kills": list(kills), "processes": processes})
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.training.checkpoints.killing", plan]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return json.loads(ended.stdout)


def at_batch(number: int) -> None:
    """After so many batches of all stages, the checkpoint that may follow one written or not, as it falls."""
    from qat_lightning.training.module import QATModule

    left = [number]

    def die(self: Any, outputs: Any, batch: Any, index: int) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    QATModule.on_train_batch_end = die  # type: ignore[method-assign]


def at_write(number: int) -> None:
    """Half way through the writing of the so-manieth checkpoint or best weights."""
    from qat_lightning.training.checkpoints import checksum

    writers: list[Any] = []

    class Dying(checksum._Hashed):
        def __init__(self, file: Any) -> None:
            super().__init__(file)
            writers.append(self)
            self.pieces = 0

        def write(self, piece: bytes) -> int:
            self.pieces += 1
            if len(writers) == number and self.pieces == 15:
                self.file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().write(piece)

    checksum._Hashed = Dying  # type: ignore[misc]


def at_rename(number: int) -> None:
    """Where the old checkpoint is `previous.ckpt` and the new one has no name yet."""
    replace, left = Path.replace, [number]

    def die(self: Path, target: Any) -> Path:
        moved = replace(self, target)
        if Path(target).name == "previous.ckpt":
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
        return moved

    Path.replace = die  # type: ignore[method-assign,assignment]


def at_signal(number: int) -> None:
    """Not killed: the last process alone is asked to stop, within the so-manieth batch."""
    from qat_lightning.training.module import QATModule

    if int(os.environ.get("LOCAL_RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1:
        left, step = [number], QATModule.training_step

        def ask(self: Any, batch: Any, index: int) -> Any:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, batch, index)

        QATModule.training_step = ask  # type: ignore[method-assign]


PLACES: dict[str, Callable[[int], None]] = {
    "batch": at_batch, "write": at_write, "rename": at_rename, "signal": at_signal,
}  # fmt: skip


def _start(folder: Path, config: Config, kill: Kill | None, processes: int) -> list[int]:
    """How each process ended: its exit code, or minus the signal. One that is left behind by a killed one is killed."""
    with ONE_AT_A_TIME:
        port = _free_port()
        running = [_fork(folder, config, kill, rank, processes, port) for rank in range(processes)]
    ended: dict[int, int] = {}
    until = math.inf
    while len(ended) < processes:
        for process in set(running) - set(ended):
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                ended[process] = code = os.waitstatus_to_exitcode(status)
                until = min(until, time.monotonic() + {0: math.inf, -signal.SIGKILL: 0}.get(code, 20))
        if time.monotonic() >= until:
            for other in set(running) - set(ended):
                os.kill(other, signal.SIGKILL)
        time.sleep(0.02)
    return [ended[process] for process in running]


def _fork(folder: Path, config: Config, kill: Kill | None, rank: int, processes: int, port: int) -> int:
    def child() -> None:
        with (folder.parent / f"{folder.name}.{rank}.txt").open("a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        if processes > 1:
            _join(rank, processes, port)
        if kill is not None:
            PLACES[kill[0]](kill[1])
        _run(folder, config)

    return os.fork() or run_and_exit(child)


def _run(folder: Path, config: Config) -> None:
    from qat_lightning.commands.train import run

    run.draw_sections = lambda *_: []  # type: ignore[assignment]  # pictures take longest
    run.run(config, folder, [])


def _join(rank: int, processes: int, port: int) -> None:
    """Set the environment variables that a launcher sets for a process."""
    from lightning.pytorch.utilities import rank_zero_only

    variables = {
        "LOCAL_RANK": rank,
        "NODE_RANK": 0,
        "WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in variables.items()})
    rank_zero_only.rank = rank


def _free_port() -> int:
    """One that is given out once, and below those that the system gives to connections by itself."""
    while True:
        port = next(PORTS)
        with socket.socket() as asked, suppress(OSError):
            asked.bind(("127.0.0.1", port))
            return port


def _outcome(place: Path, config: Config, kill: Kill | None, processes: int) -> str:
    """The student's hash, or what went otherwise than it should."""
    folder = place / ("whole" if kill is None else f"{kill[0]}-{kill[1]}")
    if kill is not None:
        codes = _start(folder, config, kill, processes)
        right = codes == [143, *[0] * (processes - 1)] if kill[0] == "signal" else -signal.SIGKILL in codes
        if not right or (folder / "metrics.json").exists():
            return f"{kill} was not stopped there: {codes} " + (place / f"{folder.name}.0.txt").read_text()[-3000:]
    codes = _start(folder, config, None, processes)
    if any(codes):
        return f"{kill} ended with {codes}: " + (place / f"{folder.name}.0.txt").read_text()[-3000:]
    left = [str(path) for path in (folder / "checkpoints").rglob("*") if path.suffix not in (".json", ".safetensors")]
    return f"{kill} left {left}" if left else json.loads((folder / "metrics.json").read_text())["student_hash"]


def main() -> None:
    import transformers.models.bert.modeling_bert  # noqa: F401

    import qat_lightning.commands.train  # noqa: F401
    from tests.training.runs import composed

    plan = json.loads(sys.argv[1])
    two = [f"trainer.devices={plan['processes']}", "trainer.strategy=ddp"] if plan["processes"] > 1 else []
    kills = [None, *map(tuple, plan["kills"])]
    asked = [(*FORTY, *plan["settings"], *two, *(kill[2] if kill else ())) for kill in kills]
    configs = {settings: composed(*settings) for settings in set(asked)}
    place = Path(tempfile.mkdtemp(prefix="killing"))
    try:
        with ThreadPoolExecutor(2) as both:
            one = lambda kill, settings: _outcome(place, configs[settings], kill, plan["processes"])  # noqa: E731
            print(json.dumps(list(both.map(one, kills, asked))))
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
