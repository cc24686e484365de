"""Augmentation: each change by hand; what is drawn depends on (seed, batch number, rank) and on nothing else."""

import io
import random

import numpy
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from PIL import Image as Pillow
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

from qat_lightning.data import augmentation
from qat_lightning.data.augmentation import Crop, Flip, TrivialAugment
from qat_lightning.data.image_classification import ImageClassificationData
from qat_lightning.training.checkpoints.callbacks import ResumeCheckpoint

SIZE, ROWS, BATCH = 8, 10, 3


def noise(count=BATCH, channels=3, size=SIZE):
    return torch.rand(count, channels, size, size)


def test_every_crop_is_a_window_of_the_padded_image_and_every_window_is_cut():
    image = noise(1, 3, 4)
    padded = numpy.zeros((3, 6, 6), dtype=numpy.float32)
    padded[:, 1:5, 1:5] = image[0]
    windows = {padded[:, y : y + 4, x : x + 4].tobytes() for y in range(3) for x in range(3)}
    cut = Crop(0.25)(image.expand(200, -1, -1, -1))
    assert {each.numpy().tobytes() for each in cut} == windows


def test_a_quarter_of_two_draws_flips_each_image_for_itself():
    images = noise(400)
    flipped = Flip(0.25)(images)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 60 < mirrored.sum() < 140  # 100 ± 4.6 standard deviations


@given(
    count=st.integers(1, 4), channels=st.sampled_from([1, 3]), size=st.integers(4, 12), seed=st.integers(0, 2**31),
    module=st.sampled_from([Crop(), Crop(1.0), Flip(), Flip(1.0), TrivialAugment()]),
)  # fmt: skip
def test_shape_and_range_are_kept_and_a_seed_decides(count, channels, size, seed, module):
    images = torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed))
    before = images.clone()
    changed = []
    for _ in range(2):
        torch.manual_seed(seed)
        changed.append(module(images))
    assert torch.equal(*changed)
    assert torch.equal(images, before)
    assert changed[0].shape == images.shape
    assert changed[0].min() >= 0
    assert changed[0].max() <= 1 + 1e-6


def only(monkeypatch, name, low, high):
    monkeypatch.setattr(augmentation, "SPACE", ((name, low, high),))
    return TrivialAugment()


def named(name):
    return next(operation for operation in augmentation.SPACE if operation[0] == name)


def test_trivial_augment_draws_for_each_image_and_leaves_one_in_fourteen():
    images = noise(1).expand(420, -1, -1, -1)
    changed = TrivialAugment()(images)
    left = (changed == images).flatten(1).all(1).sum()
    assert len(augmentation.SPACE) + 1 == 14  # with the identity, as arXiv:1909.13719 counts them
    assert 12 <= left <= 70  # 30 ± 5.3; some draws of the others change nothing: posterize to 8 bits, stretched noise
    assert len({each.numpy().tobytes() for each in changed}) > 200


def line_moves(module, upright):
    """Where a bright line through the middle of a black image comes to lie, in each of its 32 rows, of 60 draws."""
    images = torch.zeros(60, 3, 33, 33)
    images[..., 16] = 1
    moved = module(images if upright else images.mT)
    weights = (moved if upright else moved.mT)[:, 0, 1:]
    return (weights * torch.arange(33)).sum(-1) / weights.sum(-1).clamp(min=1e-6) - 16


@pytest.mark.parametrize("axis", ["x", "y"])
def test_shears_go_up_to_a_slope_of_three_tenths_both_ways(monkeypatch, axis):
    moves = line_moves(only(monkeypatch, *named(f"shear_{axis}")), axis == "x")
    slopes = (moves[:, 22] - moves[:, 8]) / 14
    assert 0.2 < slopes.max() <= 0.32
    assert 0.2 < -slopes.min() <= 0.32


@pytest.fixture
def folder(tmp_path):
    """ROWS images of noise, each with its number for a label."""
    draw = numpy.random.default_rng(0)
    for split in ("train", "validation"):
        files = []
        for _ in range(ROWS):
            files.append(written := io.BytesIO())
            Pillow.fromarray(draw.integers(0, 256, (SIZE, SIZE, 3), dtype=numpy.uint8)).save(written, "PNG")
        columns = {"image": [written.getvalue() for written in files], "label": list(range(ROWS))}
        Dataset.from_dict(columns).to_parquet(str(tmp_path / f"{split}.parquet"))
    return tmp_path


@pytest.fixture
def images(folder):
    def make(**changed):
        arguments = {
            "path": str(folder), "size": SIZE, "batch_size": BATCH, "num_labels": ROWS, "metric": "a",
            "metrics": {"a": MulticlassAccuracy(ROWS)}, "augmentation": {"crop": Crop(), "trivial": TrivialAugment()},
        }  # fmt: skip
        return ImageClassificationData(**arguments | changed)

    return make


def test_what_is_drawn_is_a_function_of_seed_batch_number_and_rank(images):
    data = images()
    batch = data.example_batch(6)
    chosen = [(seed, number, rank) for seed in (0, 1) for number in (0, 1) for rank in (0, 1)]
    drawn = {}
    for seed, number, rank in chosen:
        drawn[seed, number, rank] = images(seed=seed).augment(batch, number, rank)["pixel_values"]
    assert len({each.numpy().tobytes() for each in drawn.values()}) == len(chosen)
    one = images(seed=1)
    for _, number, rank in random.Random(0).sample(chosen, len(chosen)):  # in another order, from one object
        torch.manual_seed(number)  # whatever torch's own generator has been set to
        assert torch.equal(one.augment(batch, number, rank)["pixel_values"], drawn[1, number, rank])


def test_the_generators_of_the_run_are_left_as_they_were(images):
    data = images()
    batch = data.example_batch(4)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    numbers = random.getstate(), numpy.random.get_state()[1].tolist()
    data.augment(batch, 3)
    assert torch.equal(torch.rand(3), expected)
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == numbers


def test_pixels_are_changed_before_they_are_scaled(images):
    """A crop pads with black, and black is (0 − mean) / std."""
    data = images(augmentation={"crop": Crop(1.0)}, mean=[0.25, 0.5, 0.75], std=[0.5, 1.0, 2.0])
    batch = data.example_batch(4)
    changed = data.augment(batch, 0)
    black = torch.tensor([-0.5, -0.5, -0.375]).view(3, 1, 1)
    padded = functional.pad(batch["pixel_values"] - black, [SIZE] * 4)
    for image, whole in zip(changed["pixel_values"] - black, padded, strict=True):
        windows = whole.unfold(1, SIZE, 1).unfold(2, SIZE, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert (windows - image).abs().flatten(1).max(1).values.min() < 1e-5
    assert changed["labels"] is batch["labels"]
    assert changed["pixel_values"].dtype == torch.float32


class Recorder(LightningModule):
    """Keeps every batch as the step sees it; fails after `dies_after`."""

    def __init__(self, dies_after=None):
        super().__init__()
        self.layer, self.dies_after = torch.nn.Linear(3 * SIZE * SIZE, ROWS), dies_after
        self.seen, self.validated = {}, []

    def training_step(self, batch, batch_idx):
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx
        if number == self.dies_after:
            raise StoppedError
        self.seen[number] = (batch["pixel_values"], batch["labels"])
        torch.rand(number + 1)  # as dropout would
        return functional.cross_entropy(self.layer(batch["pixel_values"].flatten(1)), batch["labels"])

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch["pixel_values"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class StoppedError(RuntimeError):
    pass


def fit(data, folder, module=None, resume=None, **settings):
    module = module or Recorder()
    trainer = Trainer(
        max_steps=7, max_epochs=-1, val_check_interval=2, check_val_every_n_epoch=None, num_sanity_val_steps=1,
        logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        callbacks=[ResumeCheckpoint(folder / "last.ckpt", 1)], default_root_dir=folder, **settings,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return module


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_step_sees_its_own_batch_augmented_and_validation_sees_none(images, tmp_path):
    data, plain = images(), images(augmentation=None)
    seen, given = fit(data, tmp_path), fit(plain, tmp_path)
    assert list(seen.seen) == list(range(7))
    for number, (pixels, labels) in seen.seen.items():
        before, answers = given.seen[number]
        assert torch.equal(labels, answers)
        assert torch.equal(pixels, data.augment({"pixel_values": before}, number)["pixel_values"])
        assert not torch.equal(pixels, before)
    assert len(seen.validated) >= 3
    assert same(seen.validated, given.validated)


@pytest.mark.parametrize(("stop", "workers"), [(1, 0), (4, 0), (4, 2)])
def test_a_resumed_run_sees_the_same_batches(images, tmp_path, stop, workers):
    complete = fit(images(), tmp_path / "complete")
    stopped = Recorder(dies_after=stop)
    with pytest.raises(StoppedError):
        fit(images(num_workers=workers), tmp_path, stopped)
    resumed = fit(images(num_workers=workers), tmp_path, resume=tmp_path / "last.ckpt")
    assert list(resumed.seen) == list(range(stop, 7))
    for number, batch in (stopped.seen | resumed.seen).items():
        assert same(batch, complete.seen[number])
