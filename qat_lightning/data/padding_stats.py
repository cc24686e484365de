"""Count the padding of a stage's batches by replaying the sampler, without a change to the training loop."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

import numpy

from qat_lightning.data.base import TaskData

CHUNK = 10_000
"""Batches that are counted at once."""


def count_padding(data: TaskData, batches: int, world_size: int = 1) -> dict[str, int] | None:
    """Count the tokens of a stage's training batches over all processes; None if nothing is or would be padded.

    Args:
        batches: number of batches of one process.

    Returns:
        "tokens" without padding, "padding" of this run, and the padding of other settings: "longest" for mixed rows padded
        to the longest of their batch; "max_length" for rows padded to `max_length`, if the data has one.
    """
    lengths = data.train_lengths()
    if lengths is None:
        return None
    rows, tokens, padding = _count(data, lengths.numpy(), batches, world_size, data.group_by_length)
    longest = _count(data, lengths.numpy(), batches, world_size, False)[-1] if data.group_by_length else padding
    counted = {"tokens": tokens, "padding": padding, "longest": longest}
    if (length := getattr(data, "max_length", None)) is not None:
        counted["max_length"] = rows * length - tokens
        if getattr(data, "padding", None) == "max_length":
            counted["padding"] = counted["max_length"]
    return counted if any(count for name, count in counted.items() if name != "tokens") else None


def widths(data: TaskData, batches: int) -> tuple[numpy.ndarray, numpy.ndarray] | None:
    """Return rows and padded tokens of the first training batches of one process; None if all rows have one length."""
    lengths = data.train_lengths()
    if lengths is None or getattr(data, "padding", None) == "max_length":
        return None
    sizes, longest = zip(
        *((sizes, longest) for sizes, _, longest in _chunks(data, lengths.numpy(), batches)), strict=True
    )
    return numpy.concatenate(sizes), numpy.concatenate(longest)


def _count(
    data: TaskData, lengths: numpy.ndarray, batches: int, world_size: int, grouped: bool
) -> tuple[int, int, int]:
    """Count rows, their tokens, and the padding of batches padded to their longest row."""
    total = numpy.zeros(3, dtype=numpy.int64)
    for sizes, tokens, longest in _chunks(data, lengths, batches, world_size, grouped):
        total += sizes.sum(), tokens.sum(), (sizes * longest).sum() - tokens.sum()
    rows, words, padding = total.tolist()
    return rows, words, padding


def _chunks(
    data: TaskData, lengths: numpy.ndarray, batches: int, world_size: int = 1, grouped: bool | None = None
) -> Iterator[tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]]:
    """Yield for `CHUNK` batches at a time: rows per batch, tokens per row, tokens of each batch's longest row."""
    every_rank = chain.from_iterable(data.train_batches(batches, world_size=world_size, grouped=grouped).shares())
    while chunk := list(islice(every_rank, CHUNK)):
        sizes = numpy.fromiter(map(len, chunk), numpy.int64, len(chunk))
        tokens = lengths[numpy.fromiter(chain.from_iterable(chunk), numpy.int64, sizes.sum())]
        yield sizes, tokens, numpy.maximum.reduceat(tokens, sizes.cumsum() - sizes)
