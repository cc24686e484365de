"""The signals that ask a program to end; without torch, so that the command line can import it first."""

from __future__ import annotations

import signal

ASKING = [number for name in ("SIGTERM", "SIGUSR1", "SIGINT") if (number := getattr(signal, name, None)) is not None]
"""What a scheduler or a user sends; Windows has no SIGUSR1."""
