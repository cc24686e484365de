"""Weights & Biases without a network, without an account, or gone in the middle: the run goes on, and the log stays here."""

from __future__ import annotations

import os
from collections.abc import Callable

from lightning.pytorch.loggers import WandbLogger

PATIENCE = {"WANDB_INIT_TIMEOUT": "15", "WANDB_LOGIN_TIMEOUT": "60", "WANDB_FINISH_TIMEOUT": "60"}
"""Seconds for the service to open a log, for somebody at the terminal to log in, for the last lines to be sent; wandb's
own are 90 (and as much again for a service that is away), no end, and no end."""


def begin(logger: WandbLogger, say: Callable[[str, str], None]) -> None:
    """Open the log of a stage now, within seconds; offline where that fails, for this and all later stages.

    Args:
        logger: not yet used.
        say: takes the subject of a line for the terminal, and the rest of it.
    """
    import wandb  # half a second, for those who use it

    for name, seconds in PATIENCE.items():
        os.environ.setdefault(name, seconds)
    try:
        if not _was_given_up(logger):
            return
        reason = "nobody logged in"
    except wandb.Error as error:
        reason = " ".join(str(error).split(" Consider")[0].split())[:200]
    wandb.teardown()  # it has read its settings, and reads them no more
    os.environ["WANDB_MODE"] = "offline"
    logger._experiment = None
    say(
        "wandb",
        f"not reached ({reason}), so this run is logged offline: `wandb sync` sends"
        f" {logger.experiment.settings.sync_dir} later",
    )


def _was_given_up(logger: WandbLogger) -> bool:
    """wandb throws a log away that nobody answered for; one that was asked to be disabled stays so."""
    asked = os.environ.get("WANDB_MODE")
    return logger.experiment.settings.mode == "disabled" and asked != "disabled"
