"""Run the command line in processes that are forked from one that has imported everything.

`python -m qat_lightning` imports for 5 seconds; `call` and `start` do so once for all tests of a pytest process. A fork has
computed nothing before. `fresh` starts a new interpreter, for tests of what happens at import.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.forks import run_and_exit

ROOT = Path(__file__).parents[1]
NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
"""A closed port: a hub that does not answer."""


class Server:
    """A started process that forks on request; one line of JSON for each request and each answer."""

    def __init__(self) -> None:
        cache_folder = tempfile.mkdtemp(prefix="empty_hub_cache")
        environment = os.environ | NO_HUB | {"PYTHONPATH": str(ROOT), "HF_HOME": cache_folder}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.command_line"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


server = cache(Server)
"""Started at the first use; ends with this process, which closes its input."""


@dataclass
class Command:
    """A command that runs: it is the leader of its own process group."""

    pid: int
    output: Path
    returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, minus the signal, or None while it runs."""
        if self.returncode is None:
            self.returncode = server().ask(wait=self.pid)
        return self.returncode

    def wait(self, seconds: float = 120) -> int:
        """Return the exit code; kill the process and fail if it does not end in time."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                os.killpg(self.pid, signal.SIGKILL)
                raise AssertionError(f"the command did not end within {seconds} seconds:\n{self.stderr}")
            time.sleep(0.02)
        assert self.returncode is not None
        return self.returncode

    @property
    def stdout(self) -> str:
        return self.output.with_suffix(".out").read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        return self.output.with_suffix(".err").read_text(encoding="utf-8", errors="replace")


def start(folder: Path, *words: str, module: str = "qat_lightning", **environment: str) -> Command:
    """Start `python -m module` in a folder, to be signalled or waited for."""
    output = Path(tempfile.mkdtemp(prefix="command")) / "output"
    request = {"module": module, "words": words, "folder": str(folder), "output": str(output)}
    return Command(server().ask(**request, environment=environment), output)


def call(folder: Path, *words: str, module: str = "qat_lightning", seconds: float = 240, **environment: str) -> Command:
    """Run `python -m module` in a folder and return the ended command."""
    command = start(folder, *words, module=module, **environment)
    command.wait(seconds)
    return command


def fresh(folder: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a new interpreter in a folder; `environment` and other options of `subprocess.run` can be given."""
    environment = os.environ | NO_HUB | {"PYTHONPATH": str(ROOT)} | options.pop("environment", {})
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(
        [sys.executable, *words], text=True, cwd=folder, env=environment, timeout=240, check=False, **streams
    )


def _import_everything() -> None:
    """Import what commands use, and write files as tests/conftest.py does."""
    from matplotlib.figure import Figure

    import qat_lightning.commands.bench.run
    import qat_lightning.commands.evaluate
    import qat_lightning.commands.train.run
    import qat_lightning.exporters.onnx.exporter
    import qat_lightning.reports.model_card.card  # noqa: F401

    Figure.savefig = lambda *_, **__: None  # type: ignore[method-assign]
    os.fsync = lambda _: None


def _run(request: dict[str, Any]) -> None:
    os.setsid()
    os.chdir(request["folder"])
    sys.path.insert(0, request["folder"])  # as `python -m` does
    os.environ.update(request["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(request["output"] + name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), number)
    sys.argv = [request["module"], *request["words"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _serve() -> None:
    _import_everything()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else may write between the answers
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            ended, status = os.waitpid(request["wait"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        else:
            answer = os.fork() or run_and_exit(lambda request=request: _run(request))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
