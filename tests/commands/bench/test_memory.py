"""Counted bytes against sums by hand."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from qat_lightning.commands.bench.memory import peak_bytes, saved_bytes

CPU = torch.device("cpu")
MEBIBYTE = 2**20
FLOATS = MEBIBYTE // 4


def test_the_peak_is_the_largest_sum_at_one_time():
    """1, 1 + 2, 2, 2 + 4, 4 MiB: at most 6, though 7 are allocated in all."""

    def step():
        first = torch.empty(FLOATS)
        second = torch.empty(2 * FLOATS)
        del first
        third = torch.empty(4 * FLOATS)
        del second
        return third

    assert [peak_bytes(step, CPU) for _ in range(2)] == [6 * MEBIBYTE] * 2


def test_memory_inside_an_operator_is_counted():
    """A sum in float64 copies its float32 values; no operator returns the copy."""
    values = torch.ones(FLOATS)
    assert 2 * MEBIBYTE <= peak_bytes(lambda: values.sum(dtype=torch.float64), CPU) < 2.1 * MEBIBYTE
    assert peak_bytes(lambda: values.sum(), CPU) < 0.1 * MEBIBYTE


def test_saved_bytes():
    """x·w saves both, which existed before; exp saves its result, once; hooks of its own decide how."""
    x, weight = torch.ones(FLOATS), torch.ones(FLOATS, requires_grad=True)

    def twice():
        result = (x * weight).exp()
        return (result * result[:1]).sum() + result.sum()

    def half():
        with saved_tensors_hooks(lambda saved: saved.half(), lambda saved: saved.float()):
            return weight.exp().sum()

    assert saved_bytes(lambda: (weight + 1).sum(), CPU) <= 1024
    assert saved_bytes(lambda: (x * weight).exp().sum(), CPU) == pytest.approx(MEBIBYTE, abs=1024)
    assert saved_bytes(lambda: ((x + 1) * weight).exp().sum(), CPU) == pytest.approx(2 * MEBIBYTE, abs=1024)
    assert saved_bytes(twice, CPU) == pytest.approx(MEBIBYTE, abs=1024)
    assert saved_bytes(half, CPU) == pytest.approx(MEBIBYTE / 2, abs=1024)
