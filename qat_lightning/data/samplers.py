"""The order of the rows: a pure function of (seed, epoch), shared out to the ranks; nothing random is saved."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class StageBatchSampler(Sampler[list[int]]):
    """The batches of a whole training stage: batch b is a function of (seed, b), whatever was read before it.

    Batch b belongs to epoch b // (batches an epoch) and each epoch is a permutation that (seed, epoch) alone decides. A
    global batch holds batch_size · world_size rows and rank r takes its r-th slice, so two processes with batch k see
    together what one process with batch 2k sees. The last batch of an epoch is kept; it is filled up from the
    permutation's start to a multiple of world_size, so that all ranks take the same number of steps.

    Args:
        size: rows of the data.
        batches: of the whole stage; None for one epoch.
        start: batches to leave out at the start, those that a resumed run has seen; the length stays that of the stage.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        batches: int | None = None,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} is outside 0…{world_size - 1}")
        self.size, self.share, self.seed = size, batch_size * world_size, seed
        self.rank, self.world_size, self.start = rank, world_size, start
        self.per_epoch = math.ceil(size / self.share)
        self.batches = self.per_epoch if batches is None else batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, []
        for batch in range(self.start, self.batches):
            if batch // self.per_epoch != epoch:
                epoch = batch // self.per_epoch
                order = permutation(self.size, self.seed, epoch)
            yield self._slice(order, batch % self.per_epoch)

    def _slice(self, order: list[int], position: int) -> list[int]:
        """This rank's rows of the global batch at `position` of an epoch."""
        rows = order[position * self.share : (position + 1) * self.share]
        short = -len(rows) % self.world_size
        rows += (order * math.ceil(short / self.size))[:short]
        each = len(rows) // self.world_size
        return rows[self.rank * each : (self.rank + 1) * each]


class ShardSampler(Sampler[int]):
    """Rows r, r + W, r + 2W, … of rank r among W: each row once over all ranks, so that a metric is exact."""

    def __init__(self, size: int, rank: int = 0, world_size: int = 1) -> None:
        self.rows = range(rank, size, world_size)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows)


def permutation(size: int, seed: int, epoch: int) -> list[int]:
    """0…size−1 in an order that depends on nothing but (seed, epoch)."""
    generator = torch.Generator().manual_seed(seed_of(seed, epoch))
    return torch.randperm(size, generator=generator).tolist()


def seed_of(*numbers: int) -> int:
    """A seed for torch that depends on all the numbers, on every machine alike; neighbours give unrelated ones."""
    digest = hashlib.sha256("/".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:7], "big")
