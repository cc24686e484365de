"""Padding counted by replaying the sampler is that of the batches themselves; what cannot be grouped is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassAccuracy

from qat_lightning.data.image_classification import Digits
from qat_lightning.data.padding_stats import count_padding
from qat_lightning.data.synthetic import RandomText
from tests.data.test_base import Numbered, attached

COMMON = {"metrics": {"accuracy": MulticlassAccuracy(2)}, "metric": "accuracy"}


class Rows(RandomText):
    """Rows of the given lengths, all of them for training."""

    def __init__(self, lengths, batch_size=2, max_length=None, padding=None, **given):
        super().__init__(num_labels=2, batch_size=batch_size, **COMMON, **given)
        self.given = lengths
        if max_length is not None:
            self.max_length, self.padding = max_length, padding or "longest"

    def read(self):
        rows = [{"input_ids": torch.ones(length, dtype=torch.long), "labels": 0} for length in self.given]
        return rows, rows[:1]


def seen(data, steps, world_size=1, accumulate=1):
    """Tokens and padding of the batches that the loaders of all ranks give, counted in the batches."""
    tokens = padding = 0
    for rank in range(world_size):
        for batch in attached(data, rank, world_size, steps, accumulate).train_dataloader():
            tokens += int(batch["attention_mask"].sum())
            padding += int((batch["attention_mask"] == 0).sum())
    data.trainer = None
    return {"tokens": tokens, "padding": padding}


def own(counted):
    return {name: counted[name] for name in ("tokens", "padding")}


def test_by_hand():
    """One batch of three rows: 4 + 2 + 1 tokens, 3 · 4 − 7 = 5 of padding; to 6 tokens 3 · 6 − 7 = 11."""
    assert count_padding(Rows([2, 4, 1], 3, max_length=6), 1) == {
        "tokens": 7, "padding": 5, "longest": 5, "max_length": 11,
    }  # fmt: skip
    assert count_padding(Rows([2, 4, 1], 3, max_length=6, padding="max_length"), 2) == {
        "tokens": 14, "padding": 22, "longest": 10, "max_length": 22,
    }  # fmt: skip
    assert count_padding(Rows([2, 4, 1], 3), 1) == {"tokens": 7, "padding": 5, "longest": 5}  # no length for all


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=40),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 12),
    st.booleans(),
    st.booleans(),
)
def test_counted_padding_equals_that_of_the_batches(lengths, batch_size, world_size, steps, grouped, reshuffle):
    data = Rows(lengths, batch_size, group_by_length=grouped, reshuffle=reshuffle, seed=3)
    counted = count_padding(data, 2 * steps, world_size)
    expected = seen(data, steps, world_size, accumulate=2)
    mixed = seen(Rows(lengths, batch_size, reshuffle=reshuffle, seed=3), steps, world_size, accumulate=2)["padding"]
    if expected["padding"] or mixed:
        assert counted == expected | {"longest": mixed}
    else:
        assert counted is None


def test_images_and_rows_of_one_length_have_none():
    assert count_padding(Numbered(), 5) is None
    assert count_padding(Rows([4] * 6), 5) is None
    assert count_padding(Rows([4] * 6, max_length=4), 5) is None
    assert count_padding(Rows([4] * 6, max_length=5), 1) == {"tokens": 8, "padding": 0, "longest": 0, "max_length": 2}


@pytest.mark.parametrize(
    "data", [Numbered(group_by_length=True), Digits(batch_size=2, num_labels=10, **COMMON, group_by_length=True)]
)
def test_rows_without_tokens_cannot_be_grouped(data):
    with pytest.raises(ValueError, match=r"group_by_length=true, .*not tokens"):
        data.load()
