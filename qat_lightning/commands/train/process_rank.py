"""Find the rank of this process by its launcher, and not by variables that another program left behind."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only

from qat_lightning.config.schema import ConfigError, RunConfig

LEFT = "If no launcher started this process, they are left over from another program"


def know_the_rank(config: RunConfig) -> None:
    """Set the rank of this process before there is a trainer.

    Lightning's own first guess takes RANK, LOCAL_RANK or SLURM_PROCID wherever they are set, with or without a launcher,
    and on several machines it holds for each machine alone. Raises ConfigError if the environment numbers a process that
    this run does not have, or one that nobody started.
    """
    local = count_devices(config.trainer.devices)
    processes = local * config.trainer.num_nodes
    if TorchElasticEnvironment.detect():
        given = _numbers("RANK", "WORLD_SIZE")
        rank, world = given.get("RANK", 0), given.get("WORLD_SIZE", processes)
    elif SLURMEnvironment.detect():
        given = _numbers("SLURM_PROCID", "SLURM_NTASKS")
        rank, world = given.get("SLURM_PROCID", 0), given["SLURM_NTASKS"] if processes > 1 else processes
        if given["SLURM_NTASKS"] > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:  # Lightning would raise later
            raise ConfigError(
                f"{_named(given)} without SLURM_NTASKS_PER_NODE in the environment. {LEFT}: unset {' '.join(given)}. Else"
                " start the job with --ntasks-per-node"
            )
    else:
        given = _numbers("NODE_RANK", "LOCAL_RANK") | ({} if "NODE_RANK" in os.environ else _numbers("GROUP_RANK"))
        rank, world = given.get("NODE_RANK", given.get("GROUP_RANK", 0)) * local + given.get("LOCAL_RANK", 0), processes
        if processes > 1 and "LOCAL_RANK" in given and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            # Lightning would start no process and wait half an hour for the others
            raise ConfigError(
                f"{_named(given)} in the environment without MASTER_ADDR and MASTER_PORT: the run's {processes} processes"
                f" cannot find each other. {LEFT}: unset {' '.join(given)}. Else set MASTER_ADDR and MASTER_PORT for all"
                " processes"
            )
    if rank >= processes or world != processes:
        raise ConfigError(
            f"{_named(given)} in the environment: that is process {rank} (from 0) of {max(world, rank + 1)}, and the run has"
            f" {processes} (trainer.devices × trainer.num_nodes). {LEFT}: unset {' '.join(given)}. Else set trainer.devices"
            " and trainer.num_nodes as the launcher"
        )
    rank_zero_only.rank = rank  # type: ignore[attr-defined]


def first_process() -> bool:
    """Return whether this process writes files and prints, before and after there is a trainer."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def count_devices(devices: Any) -> int:
    """Return how many processes run on one machine."""
    if isinstance(devices, list):
        return len(devices)
    if devices in ("auto", -1, "-1"):
        return max(1, torch.cuda.device_count())
    return int(devices)


def _numbers(*names: str) -> dict[str, int]:
    """Return the variables of these names that are set; ConfigError if one is not a whole number, 0 or more."""
    given = {name: os.environ[name] for name in names if name in os.environ}
    for name, value in given.items():
        if not value.isdecimal():
            raise ConfigError(f"{name}={value!r} in the environment must be a whole number, 0 or more: unset {name}")
    return {name: int(value) for name, value in given.items()}


def _named(given: Mapping[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in given.items())
