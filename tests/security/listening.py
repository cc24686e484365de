"""What Python runs while a hostile file is read: commands, processes, connections."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.security.plant import canary

RUNNING = (
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "tempfile.mkdtemp",
    "socket.connect", "socket.getaddrinfo", "urllib.Request",
)  # fmt: skip
"""What Python tells its auditors of."""

_heard: list[str] | None = None


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    """Hooks cannot be taken away again; this one listens only while a case is read."""
    if event.startswith(RUNNING):
        note(f"{event} {arguments!r}")


sys.addaudithook(_hear)


def note(what: str) -> None:
    """Add to what has been heard."""
    if _heard is not None:
        _heard.append(what)


@contextmanager
def listening() -> Iterator[list[str]]:
    global _heard
    _heard = heard = []
    try:
        yield heard
    finally:
        _heard = None


def quiet(folder: Path, heard: list[str]) -> None:
    assert heard == []
    assert not canary(folder).exists()
    assert "evil" not in sys.modules
    assert "antigravity" not in sys.modules
