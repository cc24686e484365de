"""Weights & Biases without a network, without an account, or gone in the middle: the run goes on, and the log stays here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch.loggers import WandbLogger

from qat_lightning.compat import is_wandb_offline, reopen_wandb

PATIENCE = {"WANDB_INIT_TIMEOUT": "15", "WANDB_LOGIN_TIMEOUT": "60", "WANDB_FINISH_TIMEOUT": "60"}
"""Seconds for the service to open a log, for somebody at the terminal to log in, for the last lines to be sent; wandb's
own are 90 (and as much again for a service that is away), no end, and no end."""


def begin(logger: WandbLogger, say: Callable[[str, str], None]) -> None:
    """Open the log of a stage, of a logger not yet used, within seconds; offline if that fails, for all later stages too.

    `say` takes the subject of a line for the terminal, and the rest of it.
    """
    import wandb  # half a second, for those who use it

    for name, seconds in PATIENCE.items():
        os.environ.setdefault(name, seconds)
    if not is_wandb_offline(logger) and (other := _other_host()):
        say("wandb", other)
    try:
        if not _was_given_up(logger):
            return
        reason = "nobody logged in"
    except wandb.Error as error:
        reason = " ".join(str(error).split(" Consider")[0].split())[:200]
    wandb.teardown()  # it has read its settings, and reads them no more
    os.environ["WANDB_MODE"] = "offline"
    reopen_wandb(logger)
    say(
        "wandb",
        f"not reached ({reason}), so this run is logged offline: `wandb sync` sends"
        f" {logger.experiment.settings.sync_dir} later",
    )


def _other_host() -> str:
    """Return the host that gets this run and the API key, if a setting names another host than W&B's; else empty."""
    import wandb

    settings = wandb.setup().settings
    usual = wandb.Settings().base_url
    if settings.mode in ("offline", "disabled", "dryrun") or settings.base_url.rstrip("/") == usual.rstrip("/"):
        return ""
    files = [str(file) for file in (settings.settings_workspace, settings.settings_system) if "base_url" in _read(file)]
    place = next(iter([*(["WANDB_BASE_URL"] if "WANDB_BASE_URL" in os.environ else []), *files]), "a setting")
    return f"sends this run and your API key to {settings.base_url} (base_url of {place}), not to {usual}"


def _read(file: str | None) -> str:
    try:
        return Path(file or "").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _was_given_up(logger: WandbLogger) -> bool:
    """wandb throws a log away that nobody answered for; one that was asked to be disabled stays so."""
    asked = os.environ.get("WANDB_MODE")
    return logger.experiment.settings.mode == "disabled" and asked != "disabled"
