"""The order of the rows: a pure function of (seed, epoch), shared out to the ranks; nothing random is saved."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class EpochBatchSampler(Sampler[list[int]]):
    """Batches of row numbers from a permutation that (seed, epoch) alone decides.

    A global batch holds batch_size · world_size rows and rank r takes its r-th slice, so two processes with batch b see
    together what one process with batch 2b sees. The last global batch is kept; it is filled up from the permutation's
    start to a multiple of world_size, so that all ranks take the same number of steps.

    Attributes:
        skip: batches to leave out at the start of the next iteration, and of that one only (exact resume). The length
            stays that of the whole epoch.
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} is outside 0…{world_size - 1}")
        self.size, self.batch_size, self.seed, self.rank, self.world_size = size, batch_size, seed, rank, world_size
        self.epoch, self.skip = 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.size / (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        order, share = permutation(self.size, self.seed, self.epoch), self.batch_size * self.world_size
        skip, self.skip = self.skip, 0
        for start in range(skip * share, self.size, share):
            rows = order[start : start + share]
            short = -len(rows) % self.world_size
            rows += (order * math.ceil(short / self.size))[:short]
            each = len(rows) // self.world_size
            yield rows[self.rank * each : (self.rank + 1) * each]


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
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randperm(size, generator=generator).tolist()
