"""The order of the rows, a pure function of (seed, epoch) for all ranks; no random state is saved."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

WINDOW, WINDOWS = 50, 4
"""Global batches that are sorted by length together, and the least number of windows in an epoch (each of two batches or
more), so that rows of a small set get new neighbors in every epoch. transformers' group_by_length uses 50 and 4."""


class StageBatchSampler(Sampler[list[int]]):
    """The batches of a whole training stage: batch b is a function of (seed, b), independent of earlier reads.

    Batch b belongs to epoch b // (batches an epoch) and each epoch is a permutation that (seed, epoch) alone decides. A
    global batch holds batch_size · world_size rows and rank r takes its r-th slice, so two processes with batch k see
    together the rows that one process with batch 2k sees. The last batch of an epoch is kept, and filled from the
    permutation's start to a multiple of world_size, so that all ranks take the same number of steps.

    With `lengths` the permutation is cut into windows of up to 50 global batches and each is sorted by length, the longest
    first, so that rows of similar length share a batch. The batches then come in an order of (seed, epoch), a short one
    still last, and the stage starts with the full batch of the longest row, so that a lack of memory shows at once. Ranks
    take slices of the sorted batch: each step takes the time of the rank with the longest row, and other ranks pad less.

    Without `reshuffle` every epoch has the batches of epoch 0 on the same ranks, in an order that depends on (seed, epoch).

    Args:
        size: number of rows.
        batches: number of batches of the stage; None for one epoch.
        start: number of batches to skip, those that a resumed run has seen; the length includes them.
        lengths: tokens of each row (size,), to group rows by; None for mixed batches.
        reshuffle: make new batches in every epoch.
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
        lengths: Tensor | None = None,
        reshuffle: bool = True,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} is outside 0…{world_size - 1}")
        if lengths is not None and lengths.shape != (size,):
            raise ValueError(f"lengths have the shape {tuple(lengths.shape)} and must have ({size},), one for each row")
        self.size, self.share, self.seed = size, batch_size * world_size, seed
        self.rank, self.world_size, self.start = rank, world_size, start
        self.lengths, self.reshuffle = lengths, reshuffle
        self.per_epoch = math.ceil(size / self.share)
        self.batches = self.per_epoch if batches is None else batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        return (shares[self.rank] for shares in self.shares())

    def shares(self) -> Iterator[list[list[int]]]:
        """Yield the rows of every rank for each batch."""
        epoch, order, places = -1, [], []
        for batch in range(self.start, self.batches):
            if batch // self.per_epoch != epoch:
                epoch = batch // self.per_epoch
                order = self._order(epoch)
                places = self._places(order, epoch)
            yield self._shares(order, places[batch % self.per_epoch])

    def _order(self, epoch: int) -> list[int]:
        """Return the rows of an epoch, one global batch after the other."""
        order = permutation(self.size, self.seed, epoch if self.reshuffle else 0)
        if self.lengths is None:
            return order
        window = max(2, min(WINDOW, self.size // (WINDOWS * self.share)))
        return by_length(order, self.lengths, window * self.share)

    def _places(self, order: list[int], epoch: int) -> list[int]:
        """Return the order of the global batches in `order`; a short one comes last."""
        full, places = self.size // self.share, list(range(self.per_epoch))
        if self.lengths is not None or not (self.reshuffle or epoch == 0):
            places[:full] = permutation(full, seed_of(self.seed), epoch)  # not the seed of the rows
        if self.lengths is not None and epoch == 0 and full:
            firsts = self.lengths[order[: full * self.share : self.share]]  # the longest row of each batch
            longest = places.index(int(firsts.argmax()))
            places[0], places[longest] = places[longest], places[0]
        return places

    def _shares(self, order: list[int], position: int) -> list[list[int]]:
        """Return each rank's rows of the global batch at `position` of `order`."""
        rows = order[position * self.share : (position + 1) * self.share]
        short = -len(rows) % self.world_size
        rows += (order * math.ceil(short / self.size))[:short]
        each = len(rows) // self.world_size
        return [rows[rank * each : (rank + 1) * each] for rank in range(self.world_size)]


class ShardSampler(Sampler[int]):
    """Rows r, r + W, r + 2W, … of rank r among W: each row once over all ranks, so that a metric is exact."""

    def __init__(self, size: int, rank: int = 0, world_size: int = 1) -> None:
        self.rows = range(rank, size, world_size)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows)


def permutation(size: int, seed: int, epoch: int) -> list[int]:
    """Return 0…size−1 in an order that depends on (seed, epoch) only.

    >>> permutation(8, seed=0, epoch=0)
    [1, 6, 7, 0, 5, 3, 2, 4]
    """
    generator = torch.Generator().manual_seed(seed_of(seed, epoch))
    return torch.randperm(size, generator=generator).tolist()


def by_length(order: list[int], lengths: Tensor, window: int) -> list[int]:
    """Sort every `window` rows of `order`, the longest first; rows of one length keep their order."""
    rows, longest = torch.tensor(order), int(lengths.max())
    keys = torch.arange(len(rows)) // window * (longest + 1) + (longest - lengths[rows].long())
    return rows[keys.argsort(stable=True)].tolist()


def seed_of(*numbers: int) -> int:
    """Return a seed for torch that depends on all the numbers, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:7], "big")
