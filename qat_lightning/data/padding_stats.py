"""How much of a stage's batches is padding: counted by replaying the sampler, so the training loop knows nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

import numpy

from qat_lightning.data.base import TaskData

CHUNK = 10_000
"""Batches counted at once."""


def check_padding(padding: str, group_by_length: bool) -> None:
    """Raises ValueError for an unknown `data.padding`, or one that leaves grouping nothing to save."""
    if padding not in ("longest", "max_length"):
        raise ValueError(f"data.padding={padding!r} is unknown: choose longest or max_length")
    if group_by_length and padding == "max_length":
        raise ValueError(
            "data.padding=max_length pads all rows alike, so data.group_by_length=true saves nothing: give"
            " data.padding=longest, or leave grouping out"
        )


def count_padding(data: TaskData, batches: int, world_size: int = 1) -> dict[str, int] | None:
    """Tokens of a stage's training batches, of all processes together; None where nothing is or would be padded.

    Args:
        batches: of one process.

    Returns:
        "tokens" that are no padding, "padding" of this run, and the padding that there would have been: "longest", with
        each batch of rows of any lengths padded to its longest; "max_length", with every row padded to
        `data.max_length`, where the data has one.
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
    """Rows and padded tokens of each of the first training batches of one process; None where all rows are alike."""
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
    """Rows, their tokens, and the padding of batches padded to their longest row."""
    total = numpy.zeros(3, dtype=numpy.int64)
    for sizes, tokens, longest in _chunks(data, lengths, batches, world_size, grouped):
        total += sizes.sum(), tokens.sum(), (sizes * longest).sum() - tokens.sum()
    rows, words, padding = total.tolist()
    return rows, words, padding


def _chunks(
    data: TaskData, lengths: numpy.ndarray, batches: int, world_size: int = 1, grouped: bool | None = None
) -> Iterator[tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]]:
    """Of some batches at a time: how many rows each has, the tokens of each row, those of each batch's longest row."""
    given = {} if grouped is None else {"grouped": grouped}
    every_rank = chain.from_iterable(data.train_batches(batches, world_size=world_size, **given).shares())
    while chunk := list(islice(every_rank, CHUNK)):
        sizes = numpy.fromiter(map(len, chunk), numpy.int64, len(chunk))
        tokens = lengths[numpy.fromiter(chain.from_iterable(chunk), numpy.int64, sizes.sum())]
        yield sizes, tokens, numpy.maximum.reduceat(tokens, sizes.cumsum() - sizes)
