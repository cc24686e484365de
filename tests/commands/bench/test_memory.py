"""Bytes counted against sums by hand."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from qat_lightning.commands.bench.memory import peak_bytes, saved_bytes, storages

CPU = torch.device("cpu")
MEBIBYTE = 2**20
FLOATS = MEBIBYTE // 4


def test_the_peak_is_the_most_that_is_held_at_once():
    """1, 1 + 2, 2, 2 + 4, 4 MiB: 6 at most, though 7 are allocated in all."""

    def step():
        first = torch.empty(FLOATS)
        second = torch.empty(2 * FLOATS)
        del first
        third = torch.empty(4 * FLOATS)
        del second
        return third

    assert peak_bytes(step, CPU) == 6 * MEBIBYTE


def test_what_an_operator_takes_for_itself_is_counted():
    """A sum in float64 makes a copy of its float32 values, which no operator that one calls ever returns."""
    values = torch.ones(FLOATS)
    assert 2 * MEBIBYTE <= peak_bytes(lambda: values.sum(dtype=torch.float64), CPU) < 2.1 * MEBIBYTE
    assert peak_bytes(lambda: values.sum(), CPU) < 0.1 * MEBIBYTE


def test_what_lived_before_does_not_count_and_the_number_is_the_same_again():
    weight = torch.ones(FLOATS, requires_grad=True)

    def step():
        (weight * 2).exp().sum().backward()
        weight.grad = None

    found = [peak_bytes(step, CPU) for _ in range(3)]
    assert found[0] == found[1] == found[2]
    assert 2 * MEBIBYTE <= found[0] < 4.1 * MEBIBYTE


def test_saved_bytes_by_hand():
    """x·w saves both, which were there before; exp saves its result; the sum itself is the result."""
    x, weight = torch.ones(FLOATS), torch.ones(FLOATS, requires_grad=True)
    assert saved_bytes(lambda: (x * weight).exp().sum(), CPU) == pytest.approx(MEBIBYTE, abs=1024)
    assert saved_bytes(lambda: ((x + 1) * weight).exp().sum(), CPU) == pytest.approx(2 * MEBIBYTE, abs=1024)
    assert saved_bytes(lambda: (weight + 1).sum(), CPU) <= 1024


def test_a_storage_counts_once_and_whole():
    weight = torch.ones(4, FLOATS // 4, requires_grad=True)

    def forward():
        result = (weight + 1).exp()
        return (result * result[:1]).sum() + (result @ result.t()).sum()

    assert saved_bytes(forward, CPU) == pytest.approx(MEBIBYTE, abs=1024)


def test_what_is_saved_by_hooks_of_its_own_is_counted_as_they_save_it():
    """exp's result, in half precision."""
    weight = torch.ones(FLOATS, requires_grad=True)

    def forward():
        with saved_tensors_hooks(lambda saved: saved.half(), lambda saved: saved.float()):
            return weight.exp().sum()

    assert saved_bytes(forward, CPU) == pytest.approx(MEBIBYTE / 2, abs=1024)


def test_storages_of_views_are_one():
    whole = torch.zeros(8)
    assert storages([whole, whole[2:], whole.view(2, 4)]) == {whole.untyped_storage().data_ptr(): 32}
