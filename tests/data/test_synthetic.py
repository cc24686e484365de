"""Random rows have the shapes that were asked for, and are the same every time."""

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy

from qat_lightning.data import RandomImages, RandomText

COMMON = {"batch_size": 8, "metrics": {"a": MulticlassAccuracy(3)}, "metric": "a"}


def random_text(**changed):
    return RandomText(**COMMON | {"rows": 40, "length": 9, "vocabulary_size": 12, "num_labels": 3} | changed)


def random_images(**changed):
    return RandomImages(**COMMON | {"rows": 20, "channels": 2, "size": 6, "num_labels": 3} | changed)


def test_texts_have_several_lengths_and_a_mask_over_their_padding():
    batch = random_text().example_batch(40)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert ids.shape == mask.shape == (40, 9)
    lengths = mask.sum(1)
    assert lengths.min() >= 2
    assert len(lengths.unique()) > 3
    assert torch.equal(mask, (torch.arange(9) < lengths[:, None]).long())
    assert ids[mask == 0].eq(0).all()
    assert ids[mask == 1].min() >= 1
    assert ids.max() == 11


def test_images_have_the_shape_asked_for():
    batch = random_images().example_batch(20)
    assert batch["pixel_values"].shape == (20, 2, 6, 6)
    assert abs(batch["pixel_values"].mean()) < 0.2
    assert abs(batch["pixel_values"].std() - 1) < 0.1


@pytest.mark.parametrize("make", [random_text, random_images])
def test_labels_are_classes_or_scores(make):
    classes = make().example_batch(40)["labels"]
    assert classes.dtype == torch.int64
    assert set(classes.tolist()) == {0, 1, 2}
    scores = make(num_labels=1).example_batch(40)["labels"]
    assert scores.dtype == torch.float32
    assert len(scores.unique()) > 10


@pytest.mark.parametrize("make", [random_text, random_images])
def test_content_is_the_same_every_time_and_differs_between_the_splits(make):
    data = make()
    torch.manual_seed(5)
    assert make().fingerprint() == data.fingerprint()
    first, second = (data.collate(rows)["labels"].tolist() for rows in (data.train_rows, data.validation_rows))
    assert first != second
