"""The digits: the same split always, scaled pixels, all classes on both sides."""

import torch
from torchmetrics.classification import MulticlassAccuracy

from qat_lightning.data import Digits


def digits(**changed):
    return Digits(
        **{"batch_size": 32, "num_labels": 10, "metrics": {"a": MulticlassAccuracy(10)}, "metric": "a"} | changed
    )


def test_a_batch():
    batch = digits().example_batch(5)
    assert batch["pixel_values"].shape == (5, 1, 8, 8)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["labels"].dtype == torch.int64


def test_pixels_fill_minus_one_to_one():
    data = digits()
    data.load()
    pixels = torch.stack([row["pixel_values"] for row in data.train_rows])
    assert (pixels.min(), pixels.max()) == (-1, 1)


def test_a_fifth_is_held_out_stratified_and_disjoint():
    data = digits()
    data.load()
    assert (len(data.train_rows), len(data.validation_rows)) == (1437, 360)
    counts = torch.bincount(torch.tensor([row["labels"] for row in data.validation_rows]))
    assert counts.min() >= 35
    assert counts.max() <= 37
    seen = {(row["labels"], tuple(row["pixel_values"].flatten().tolist())) for row in data.train_rows}
    held = {(row["labels"], tuple(row["pixel_values"].flatten().tolist())) for row in data.validation_rows}
    assert not seen & held


def test_the_split_is_the_same_for_every_seed():
    assert digits(seed=0).fingerprint() == digits(seed=9).fingerprint()


def test_labels_belong_to_their_images():
    """Images of a class are nearer to their own mean than to the others': a shuffle of either would end that."""
    data = digits()
    data.load()
    pixels = torch.stack([row["pixel_values"].flatten() for row in data.train_rows])
    labels = torch.tensor([row["labels"] for row in data.train_rows])
    means = torch.stack([pixels[labels == label].mean(0) for label in range(10)])
    nearest = torch.cdist(pixels, means).argmin(1)
    assert (nearest == labels).float().mean() > 0.85
