"""The order of the rows: a pure function of (seed, epoch), shared out to the ranks; nothing random is saved."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

WINDOW, WINDOWS = 50, 4
"""Global batches whose rows are sorted by length together, and windows that an epoch has, while they hold two batches, at
least, so that a small set's rows do not meet the same neighbours every time. transformers' group_by_length takes 50 and 4."""


class StageBatchSampler(Sampler[list[int]]):
    """The batches of a whole training stage: batch b is a function of (seed, b), whatever was read before it.

    Batch b belongs to epoch b // (batches an epoch) and each epoch is a permutation that (seed, epoch) alone decides. A
    global batch holds batch_size · world_size rows and rank r takes its r-th slice, so two processes with batch k see
    together what one process with batch 2k sees. The last batch of an epoch is kept; it is filled up from the
    permutation's start to a multiple of world_size, so that all ranks take the same number of steps.

    With `lengths` the permutation is cut into windows of up to 50 global batches and each is sorted by length, the longest
    first, so that rows of about one length share a batch. The batches then come in an order of (seed, epoch), a short one
    still last, and the stage's first is the full one with the longest row: what does not fit into memory is told at once.
    Ranks take slices of the sorted batch: a step lasts as long as that of the rank with the longest row, however rows are
    dealt out, and in slices the other ranks pad less.

    Without `reshuffle` every epoch has the batches of epoch 0, row for row and on the same ranks; only their order is of
    (seed, epoch).

    Args:
        size: rows of the data.
        batches: of the whole stage; None for one epoch.
        start: batches to leave out at the start, those that a resumed run has seen; the length stays that of the stage.
        lengths: tokens of each row (size,), to group rows by; None for batches of any lengths.
        reshuffle: other batches in every epoch.
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
        """The rows of every rank, batch after batch."""
        epoch, order, places = -1, [], []
        for batch in range(self.start, self.batches):
            if batch // self.per_epoch != epoch:
                epoch = batch // self.per_epoch
                order = self._order(epoch)
                places = self._places(order, epoch)
            yield self._shares(order, places[batch % self.per_epoch])

    def _order(self, epoch: int) -> list[int]:
        """The rows of an epoch, those of one global batch side by side."""
        order = permutation(self.size, self.seed, epoch if self.reshuffle else 0)
        if self.lengths is None:
            return order
        window = max(2, min(WINDOW, self.size // (WINDOWS * self.share)))
        return by_length(order, self.lengths, window * self.share)

    def _places(self, order: list[int], epoch: int) -> list[int]:
        """Which global batch of `order` comes first, second, …; a short one last."""
        full, places = self.size // self.share, list(range(self.per_epoch))
        if self.lengths is not None or not (self.reshuffle or epoch == 0):
            places[:full] = permutation(full, seed_of(self.seed), epoch)  # a seed of its own: not that of the rows
        if self.lengths is not None and epoch == 0 and full:
            firsts = self.lengths[order[: full * self.share : self.share]]  # the longest row of each batch
            longest = places.index(int(firsts.argmax()))
            places[0], places[longest] = places[longest], places[0]
        return places

    def _shares(self, order: list[int], position: int) -> list[list[int]]:
        """Each rank's rows of the global batch at `position` of `order`."""
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
    """0…size−1 in an order that depends on nothing but (seed, epoch)."""
    generator = torch.Generator().manual_seed(seed_of(seed, epoch))
    return torch.randperm(size, generator=generator).tolist()


def by_length(order: list[int], lengths: Tensor, window: int) -> list[int]:
    """`order` with every `window` rows sorted, the longest first; rows of one length stay in their order."""
    rows, longest = torch.tensor(order), int(lengths.max())
    keys = torch.arange(len(rows)) // window * (longest + 1) + (longest - lengths[rows].long())
    return rows[keys.argsort(stable=True)].tolist()


def seed_of(*numbers: int) -> int:
    """A seed for torch that depends on all the numbers, on every machine alike; neighbours give unrelated ones."""
    digest = hashlib.sha256("/".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:7], "big")
