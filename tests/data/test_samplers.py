"""Which rows a rank reads, and when: pure functions of (seed, batch), checked by property."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat_lightning.data.samplers import ShardSampler, StageBatchSampler, permutation

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


def test_permutation_is_the_same_on_every_machine():
    assert permutation(8, 0, 0) == [1, 6, 7, 0, 5, 3, 2, 4]


def test_seed_and_epoch_each_give_another_order():
    orders = [tuple(permutation(30, seed, epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == len(orders)


@given(SIZES, BATCHES, SEEDS)
def test_one_process_reads_every_row_once_an_epoch(size, batch_size, seed):
    sampler = StageBatchSampler(size, batch_size, seed)
    batches = list(sampler)
    assert sorted(itertools.chain(*batches)) == list(range(size))
    assert len(sampler) == len(batches) == -(-size // batch_size)
    assert all(len(batch) == batch_size for batch in batches[:-1])


@given(SIZES, BATCHES, SEEDS, st.integers(2, 4))
def test_ranks_see_together_what_one_process_with_the_whole_batch_sees(size, batch_size, seed, world_size):
    batches = 2 * -(-size // (batch_size * world_size))  # two epochs
    alone = list(StageBatchSampler(size, batch_size * world_size, seed, batches))
    ranks = [
        list(StageBatchSampler(size, batch_size, seed, batches, 0, rank, world_size)) for rank in range(world_size)
    ]
    assert [len(rank) for rank in ranks] == [batches] * world_size
    for whole, *slices in zip(alone, *ranks, strict=True):
        together = list(itertools.chain(*slices))
        assert len({len(rows) for rows in slices}) == 1
        assert together[: len(whole)] == whole
        assert len(together) - len(whole) < world_size  # filled up, by less than one row for each rank


def test_last_batch_is_filled_from_the_start_of_the_permutation():
    order = permutation(5, 3, 0)
    slices = [list(StageBatchSampler(5, 2, 3, rank=rank, world_size=2))[-1] for rank in range(2)]
    assert slices == [[order[4]], [order[0]]]


def test_more_processes_than_rows_still_give_each_a_row():
    slices = [list(StageBatchSampler(2, 1, 0, rank=rank, world_size=5)) for rank in range(5)]
    assert all(len(batches) == 1 and len(batches[0]) == 1 for batches in slices)


@given(SIZES, BATCHES, SEEDS, st.integers(1, 30), st.data())
def test_start_leaves_out_the_first_batches_and_changes_no_other(size, batch_size, seed, batches, data):
    start = data.draw(st.integers(0, batches))
    whole, rest = (StageBatchSampler(size, batch_size, seed, batches, first) for first in (0, start))
    assert list(rest) == list(whole)[start:]
    assert len(rest) == batches


def test_a_second_pass_over_the_sampler_is_the_same():
    sampler = StageBatchSampler(10, 3, 0, batches=7, start=2)
    assert list(sampler) == list(sampler)


def test_each_epoch_of_a_stage_has_its_own_order():
    batches = list(StageBatchSampler(12, 4, 5, batches=8))
    assert list(itertools.chain(*batches[:3])) == permutation(12, 5, 0)
    assert list(itertools.chain(*batches[3:6])) == permutation(12, 5, 1)
    assert list(itertools.chain(*batches[6:])) == permutation(12, 5, 2)[:8]


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_outside_the_world_is_refused(rank):
    with pytest.raises(ValueError, match=rf"rank={rank} is outside 0…1"):
        StageBatchSampler(4, 1, 0, rank=rank, world_size=2)


@given(st.integers(0, 40), st.integers(1, 5))
def test_shards_hold_every_row_once_and_in_order(size, world_size):
    shards = [ShardSampler(size, rank, world_size) for rank in range(world_size)]
    assert all(list(shard) == list(range(rank, size, world_size)) for rank, shard in enumerate(shards))
    assert sorted(itertools.chain(*shards)) == list(range(size))
    assert sum(len(shard) for shard in shards) == size
