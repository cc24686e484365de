"""Configured shapes and random inputs."""

import pytest
import torch

from qat_lightning.commands.bench.settings import InferenceSettings, random_batch, read_settings, shapes_for
from qat_lightning.config.schema import ConfigError
from tests.tiny_models import FAMILIES, IMAGE, IMAGE_FAMILIES, PAD, POSITIONS, TEXT_FAMILIES, VOCABULARY, tiny_model


@pytest.mark.parametrize(
    "shapes", [[], "1x128", [1, 128], [[]], [[1, 8], [1, 0]], [[1, 2, 3]], [[1, 8.0]], [[True, 8]]], ids=str
)
def test_other_values_than_shapes_are_refused(shapes):
    with pytest.raises(ConfigError, match=r"bench\.shapes"):
        read_settings(InferenceSettings, {"shapes": shapes, "repeats": 1, "warmup": 0, "loads": 1})


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_texts_have_rows_and_at_most_the_tokens_that_the_model_reads(family):
    """RoBERTa's positions begin after the number of its padding token."""
    longest = POSITIONS - (PAD + 1) * (family == "roberta")
    model = tiny_model(family)
    assert shapes_for(model, [[2, longest], [1, 4], [2, longest]]) == [(2, longest), (1, 4)]
    with pytest.raises(ValueError, match=f"5×{longest + 1}"):
        shapes_for(model, [[5, longest + 1], [1, 4]])
    with pytest.raises(ValueError, match=r"\[\[4,128\]\]"):
        shapes_for(model, [[1, 8], [4]])


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_images_have_only_rows(family):
    assert shapes_for(tiny_model(family), [[1, 32], [8, 128], [1], [8, 999]]) == [(1,), (8,)]


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_are_full_and_depend_only_on_the_seed(family):
    model = tiny_model(family)
    shape = (50,) if family in IMAGE_FAMILIES else (50, 20)
    batch, again, other = (random_batch(model, shape, seed) for seed in (1, 1, 2))
    first = next(iter(batch))
    assert torch.equal(batch[first], again[first])
    assert not torch.equal(batch[first], other[first])
    if family in IMAGE_FAMILIES:
        assert {name: value.shape for name, value in batch.items()} == {"pixel_values": (50, 3, IMAGE, IMAGE)}
    else:
        assert batch["input_ids"].shape == batch["attention_mask"].shape == shape
        assert batch["attention_mask"].all()
        assert batch["input_ids"].unique().tolist() == list(range(PAD + 1, VOCABULARY))
