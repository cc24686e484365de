"""CIFAR-10 and MNIST from the folder that QAT_SHARED names, or ../shared beside the checkout; minutes."""

import pytest
import torch

from tests.acceptance.test_real_data import whole_run
from tests.data.test_real import SHARED, counts, real

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SHARED / "data" / "cifar10").is_dir(), reason=f"no images in {SHARED}"),
]


def test_cifar_has_its_official_rows():
    data = real("cifar10", "cifar10", "model=vit_small")
    assert counts(data.train_rows) == [5000] * 10
    assert counts(data.validation_rows) == [1000] * 10
    assert data.label_names[:3] == ["airplane", "automobile", "bird"]
    assert len(data.fingerprint()) == 64


def test_pixels_of_cifar_have_the_published_mean_and_spread():
    data = real("cifar10", "cifar10", "model=vit_small", "data.train_limit=5000", "data.mean=[0.0]", "data.std=[1.0]")
    pixels = data.collate(list(data.train_rows))["pixel_values"]
    assert pixels.shape == (5000, 3, 32, 32)
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.01)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=0.01)


def test_labels_of_mnist_belong_to_their_digits():
    """The nearest mean of a class is right for 82 % of MNIST's test images."""
    places = ("model.architecture.image_size=28", "model.architecture.num_channels=1", "data.train_limit=5000")
    data = real("mnist", "mnist", "model=tiny_vit", *places)
    train, held = (data.collate(list(rows)[:5000]) for rows in (data.train_rows, data.validation_rows))
    pixels = train["pixel_values"].flatten(1)
    means = torch.stack([pixels[train["labels"] == digit].mean(0) for digit in range(10)])
    nearest = torch.cdist(held["pixel_values"].flatten(1), means).argmin(1)
    assert 0.75 < (nearest == held["labels"]).float().mean() < 0.9


def test_teacher_intervention_on_a_vit_and_cifar(tmp_path):
    results = whole_run(
        tmp_path, "model=vit_small", "data=cifar10", f"data.path={SHARED / 'data' / 'cifar10'}", "data.batch_size=64",
        "data.train_limit=768", "data.validation_limit=256", "stages.teacher.max_epochs=4", "stages.train.max_epochs=1",
        "stages.intervene.max_steps=4", "stages.intervene.validate_every=2", "optimizer.lr=1e-3",
        "trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "threads=2",
    )  # fmt: skip
    assert (results["task"], results["metric"]) == ("cifar10", "accuracy")
    # chance is 0.1, and 256 images tell that to 0.019
    assert results["teacher"] > 0.16
    assert results["student"] > 0.14
    assert results["assisted"] is not None
    assert results["bytes"]["ratio"] > 10
