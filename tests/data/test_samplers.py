"""Which rows a rank reads, and when: pure functions of (seed, batch), checked by property."""

import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat_lightning.data.samplers import ShardSampler, StageBatchSampler, by_length, permutation, seed_of

SIZES, BATCHES, SEEDS = st.integers(1, 40), st.integers(1, 7), st.integers(0, 2**31)


@given(SIZES, SEEDS, st.integers(0, 1000))
def test_permutation_holds_every_row_and_ignores_the_global_generator(size, seed, epoch):
    torch.manual_seed(seed + 1)
    state = torch.get_rng_state()
    first = permutation(size, seed, epoch)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert permutation(size, seed, epoch) == first
    assert sorted(first) == list(range(size))


def test_last_batch_is_filled_from_the_start_of_the_permutation():
    order = permutation(5, 3, 0)
    slices = [list(StageBatchSampler(5, 2, 3, rank=rank, world_size=2))[-1] for rank in range(2)]
    assert slices == [[order[4]], [order[0]]]


def test_each_epoch_of_a_stage_has_its_own_order():
    batches = list(StageBatchSampler(12, 4, 5, batches=8))
    assert list(itertools.chain(*batches[:3])) == permutation(12, 5, 0)
    assert list(itertools.chain(*batches[3:6])) == permutation(12, 5, 1)
    assert list(itertools.chain(*batches[6:])) == permutation(12, 5, 2)[:8]


@given(st.integers(0, 40), st.integers(1, 5))
def test_shards_hold_every_row_once_and_in_order(size, world_size):
    shards = [ShardSampler(size, rank, world_size) for rank in range(world_size)]
    assert all(list(shard) == list(range(rank, size, world_size)) for rank, shard in enumerate(shards))
    assert sorted(itertools.chain(*shards)) == list(range(size))
    assert sum(len(shard) for shard in shards) == size


WORLDS = st.integers(1, 4)
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=60).map(torch.tensor)


def sampler(lengths, batch_size=1, seed=0, batches=None, start=0, rank=0, world_size=1, reshuffle=True, grouped=True):
    given = (len(lengths), batch_size, seed, batches, start, rank, world_size, lengths if grouped else None, reshuffle)
    return StageBatchSampler(*given)


def padding(batches, lengths):
    return sum(sum(max(lengths[rows].tolist()) - length for length in lengths[rows].tolist()) for rows in batches)


def skewed(rows, seed=0):
    """Many short rows and a few long ones, as texts are."""
    draw = random.Random(seed)
    return torch.tensor([min(128, 3 + int(draw.expovariate(1 / 20))) for _ in range(rows)])


def test_by_hand():
    """Two windows of two batches of two rows; the permutation of each is sorted by itself, and cut."""
    lengths = torch.tensor([5, 9, 1, 7, 3, 2, 8, 4])
    order = [1, 6, 7, 0, 5, 3, 2, 4]  # lengths 9 8 4 5, 2 7 1 3
    assert by_length(order, lengths, 4) == [1, 6, 0, 7, 3, 4, 5, 2]  # 9 8 5 4, 7 3 2 1
    assert by_length(order, lengths, 2) == [1, 6, 0, 7, 3, 5, 4, 2]
    assert by_length(order, lengths, 99) == [1, 6, 3, 0, 7, 4, 5, 2]


def test_two_epochs_by_hand():
    """8 rows in batches of 2: two windows of two batches, the least."""
    lengths = torch.tensor([5, 9, 1, 7, 3, 2, 8, 4])
    assert permutation(8, 0, 0) == [1, 6, 7, 0, 5, 3, 2, 4]
    one, two, three, four = [1, 6], [0, 7], [3, 4], [5, 2]  # 9 8, 5 4 of 9 8 4 5; 7 3, 2 1 of 2 7 1 3
    assert [permutation(4, seed_of(0), epoch) for epoch in (0, 1)] == [[0, 3, 2, 1], [3, 1, 2, 0]]
    expected = [one, four, three, two, four, two, three, one]
    assert list(sampler(lengths, 2, batches=8, reshuffle=False)) == expected


def test_windows_and_the_longest_row_first_by_hand():
    """40 rows in batches of 4: a window is two batches, a fourth of the epoch at most."""
    lengths = torch.arange(40) % 7
    assert permutation(40, 3, 0)[:8] == [23, 24, 39, 31, 34, 32, 22, 15]  # lengths 2 3 4 3 6 4 1 1
    zero, one = [34, 39, 32, 24], [31, 23, 22, 15]  # 6 4 4 3, 3 2 1 1
    assert permutation(10, seed_of(3), 0) == [5, 8, 6, 9, 4, 0, 7, 3, 1, 2]
    batches = list(sampler(lengths, 4, seed=3))
    assert batches[0] == zero  # length 6, in the place of batch 5, which comes where 0 would have been
    assert batches[8] == one
    assert [int(lengths[batch[0]]) for batch in batches].count(6) > 1  # of several the first


@given(LENGTHS, BATCHES, SEEDS, st.integers(0, 5), st.booleans(), st.booleans())
def test_every_epoch_holds_every_row_once(lengths, batch_size, seed, epoch, reshuffle, grouped):
    each = -(-len(lengths) // batch_size)
    batches = list(sampler(lengths, batch_size, seed, each * (epoch + 1), each * epoch, 0, 1, reshuffle, grouped))
    assert len(batches) == each
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    assert all(len(batch) == batch_size for batch in batches[:-1])  # a short one comes last


@given(LENGTHS, BATCHES, SEEDS, st.integers(2, 4), st.booleans(), st.booleans())
def test_ranks_see_together_what_one_process_with_the_whole_batch_sees(lengths, size, seed, world_size, again, grouped):
    batches = 2 * -(-len(lengths) // (size * world_size))  # two epochs
    alone = list(sampler(lengths, size * world_size, seed, batches, reshuffle=again, grouped=grouped))
    ranks = [
        list(sampler(lengths, size, seed, batches, 0, rank, world_size, again, grouped)) for rank in range(world_size)
    ]
    for whole, *slices in zip(alone, *ranks, strict=True):
        together = list(itertools.chain(*slices))
        assert len({len(rows) for rows in slices}) == 1
        assert together[: len(whole)] == whole
        assert len(together) - len(whole) < world_size
    shares = sampler(lengths, size, seed, batches, 0, 0, world_size, again, grouped).shares()
    assert [list(each) for each in zip(*ranks, strict=True)] == list(shares)


@given(LENGTHS, BATCHES, SEEDS, st.integers(1, 30), WORLDS, st.booleans(), st.booleans(), st.data())
def test_start_leaves_out_the_first_batches_and_changes_no_other(
    lengths, size, seed, batches, world, again, grouped, data
):
    start, rank = data.draw(st.integers(0, batches)), data.draw(st.integers(0, world - 1))
    whole, rest = (sampler(lengths, size, seed, batches, first, rank, world, again, grouped) for first in (0, start))
    assert list(rest) == list(whole)[start:]
    assert len(rest) == batches


@given(LENGTHS, BATCHES, SEEDS, WORLDS, st.booleans())
def test_without_reshuffling_every_epoch_has_the_same_batches_on_every_rank(lengths, size, seed, world, grouped):
    each = -(-len(lengths) // (size * world))
    for rank in range(world):
        batches = list(sampler(lengths, size, seed, 3 * each, 0, rank, world, False, grouped))
        epochs = [batches[start : start + each] for start in (0, each, 2 * each)]
        assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
        assert epochs[0][-1] == epochs[1][-1] or len(lengths) % (size * world) == 0  # a short one stays last
    first = list(sampler(lengths, size, seed, each, 0, 0, world, True, grouped))
    assert list(sampler(lengths, size, seed, each, 0, 0, world, False, grouped)) == first


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_rows_of_one_length_share_a_batch(seed, world_size):
    lengths = skewed(2000, seed)
    ranks = [
        [
            padding(sampler(lengths, 8, seed, rank=rank, world_size=world_size, grouped=grouped), lengths)
            for grouped in (True, False)
        ]
        for rank in range(world_size)
    ]
    grouped, mixed = (sum(each) for each in zip(*ranks, strict=True))
    assert grouped < mixed / 4
