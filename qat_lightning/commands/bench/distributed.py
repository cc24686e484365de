"""Steps of several processes that train together, as torch's DDP does it."""

from __future__ import annotations

import json
import socket
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from qat_lightning.commands.bench.cases import Workshop
from qat_lightning.commands.bench.timing import seconds_side_by_side
from qat_lightning.commands.bench.training_step import compiled_or_told
from qat_lightning.config.schema import BenchConfig, ConfigError, RunConfig
from qat_lightning.io.files import write_text


def seconds_of_processes(
    config: BenchConfig, plain: RunConfig, variant: RunConfig, processes: int
) -> list[list[float]]:
    """Seconds of each round, of the baseline and of the variant, side by side; as the first of the processes sees them.

    Raises:
        ConfigError: more processes than CUDA devices.
        Exception: a process that has ended in an error.
    """
    on_cuda = config.bench["device"] != "cpu" and torch.cuda.is_available()
    if on_cuda and processes > torch.cuda.device_count():
        raise ConfigError(f"there are {torch.cuda.device_count()} CUDA devices, too few for {processes} processes")
    with TemporaryDirectory(prefix="qat_lightning_bench_") as folder:
        place = Path(folder) / "seconds.json"
        given = (processes, _free_port(), on_cuda, config, plain, variant, str(place))
        torch.multiprocessing.spawn(_time, given, nprocs=processes)
        return json.loads(place.read_text())


def _time(
    rank: int,
    processes: int,
    port: int,
    on_cuda: bool,
    config: BenchConfig,
    plain: RunConfig,
    variant: RunConfig,
    place: str,
) -> None:
    """In each process."""
    bench, device = config.bench, torch.device("cuda", rank) if on_cuda else torch.device("cpu")
    torch.set_num_threads(config.threads)
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("nccl" if on_cuda else "gloo", init_method=address, rank=rank, world_size=processes)
    wrap = partial(_parallel, device=device)
    # A workshop for each: two DDPs cannot have the same weights.
    shape = tuple(bench["shape"])
    workshops = [Workshop(plain, shape, device, bench["precision"]) for _ in range(2)]
    compiled = bench["compiled"]
    with compiled_or_told():
        cases = [
            workshops[0].baseline(wrap=wrap, compiled=compiled),
            workshops[1].variant(variant, wrap=wrap, compiled=compiled),
        ]
        calls: dict[Any, Any] = {number: case.step for number, case in enumerate(cases)}
        warmup = bench["warmup"] + 1 + compiled
        seconds = seconds_side_by_side(calls, bench["repeats"], warmup, bench["untimed"], clock=bench["clock"])
    if rank == 0:
        write_text(Path(place), json.dumps(list(seconds.values())))
    distributed.barrier()
    distributed.destroy_process_group()


def _parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """With a run's own settings: an intervention leaves weights without a gradient, and all have the same buffers."""
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, devices, find_unused_parameters=True, broadcast_buffers=False)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
