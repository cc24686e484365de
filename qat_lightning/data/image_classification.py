"""Images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image as Pillow
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from transformers import ViTImageProcessorPil

from qat_lightning.data.base import Row, TaskData
from qat_lightning.data.class_names import UNLABELLED, LabelColumn, as_names
from qat_lightning.data.file_formats import Column
from qat_lightning.data.image_decoding import EncodedImages, Scale, decode, read_images
from qat_lightning.data.labels import Labels, read_labels
from qat_lightning.data.samplers import seed_of

HALF = (0.5,)
"""ViT's mean and deviation."""

AUGMENTATION = 1
"""Sets this seed apart from that of dropout, which is made of the same three numbers."""


class ImageClassificationData(TaskData):
    """pixel_values (B, channels, size, size) float32: (pixels / 255 − mean) / std. Only training batches are augmented.

    Args:
        path: hub id such as uoft-cs/cifar10, or a folder with `train.*` and `validation.*` as parquet, or with image
            files in a folder for each class (train/cat/1.png).
        name: configuration on the hub; None for none.
        image_column: of PNG, JPEG … files.
        label_column: whole numbers from 0, names, or numbers for a regression (num_labels=1).
        label_names: the classes in the order of their numbers; None for the model's order, else the data's own.
        unlabelled: labels of rows that have none, beside null: such rows are left out, and counted.
        size: height and width in pixels that the model wants; other images are resized.
        channels: 3 for RGB, 1 for grey; others are converted.
        mean, std: one for all channels or one for each; None for the model's own, else 0.5.
        augmentation: name → module, images (B, C, H, W) in [0, 1] → the same shape, applied in this order.

    Raises:
        ValueError: an argument out of range; when read, in words: a missing column, no image, a label out of range.
    """

    head = "image_classification"

    def __init__(
        self,
        *,
        path: str,
        name: str | None = None,
        image_column: str = "image",
        label_column: str = "label",
        label_names: Sequence[str | int | bool] | None = None,
        unlabelled: Sequence[str | int] = UNLABELLED,
        train_split: str = "train",
        validation_split: str = "validation",
        size: int = 224,
        channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        augmentation: Mapping[str, nn.Module] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if size < 1:
            raise ValueError(f"data.size={size} must be 1 or more: the model's height and width in pixels")
        if channels not in (1, 3):
            raise ValueError(f"data.channels={channels} must be 3 for RGB, or 1 for grey")
        self.path, self.name, self.task = path, name, Path(path).name
        self.image_column, self.label_column = image_column, label_column
        self.labels = LabelColumn(label_column, self.num_labels, as_names(label_names), unlabelled=unlabelled)
        self.splits = {"train": train_split, "validation": validation_split}
        self.size, self.channels = size, channels
        self.statistics = {"mean": mean, "std": std}
        self.scale = Scale(mean or HALF, std or HALF, channels)
        self.augmentation = dict(augmentation or {})
        for key, module in self.augmentation.items():
            if not isinstance(module, nn.Module):
                raise ValueError(
                    f"data.augmentation.{key} is no torch module: give the _target_ of one, or ~data.augmentation.{key}"
                )

    def follow_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take the model's mean and deviation of pixels in [0, 1], where none were given; a difference is noted."""
        own = {"mean": list(mean), "std": list(std)}
        for argument, given in self.statistics.items():
            if given is not None and not _same(given, own[argument], self.channels):
                self.notes.append(
                    f"data.{argument}={list(given)} is not the model's {own[argument]} (preprocessor_config.json); leave it out"
                    " to take the model's"
                )
        chosen = {argument: given or own[argument] for argument, given in self.statistics.items()}
        self.scale = Scale(chosen["mean"], chosen["std"], self.channels)

    def read(self) -> tuple[Sequence[Row], Sequence[Row]]:
        image = Column(self.image_column, "name the right one with data.image_column=…", text=True)
        label = Column(self.label_column, "name the right one with data.label_column=…")
        train, validation = (read_images(self.path, self.name, split, image, label) for split in self.splits.values())
        labels = read_labels(
            {"train": train, "validation": validation}, replace(self.labels, model_names=self.model_names)
        )
        self.label_names, self.notes = labels.names, [*self.notes, *labels.notes]
        self.encoded = (self._rows(train, "train", labels), self._rows(validation, "validation", labels))
        return self.encoded

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        pixels = torch.stack([self._decode(row) for row in rows]) / 255
        return {"pixel_values": self.scale(pixels), "labels": torch.tensor([row["labels"] for row in rows])}

    @property
    def processor(self) -> ViTImageProcessorPil:
        sides = {"height": self.size, "width": self.size}
        return image_processor(self.scale, self.channels, 1 / 255, size=sides, resample=Pillow.Resampling.BILINEAR)

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Lightning's hook, on the device and just before the step that sees the batch, never ahead of it."""
        if not self.augmentation or self.trainer is None or not self.trainer.training:
            return batch
        done = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        return self.augment(batch, done, self.trainer.global_rank)

    @torch.no_grad()
    def augment(self, batch: dict[str, Tensor], number: int, rank: int = 0) -> dict[str, Tensor]:
        """The batch changed at random: a pure function of (batch, seed, number, rank).

        Args:
            number: batches that the stage has seen before this one.
        """
        given = batch["pixel_values"]
        pixels = self.scale.undo(given.float())
        with torch.random.fork_rng([given.device] if given.is_cuda else []):
            torch.manual_seed(seed_of(self.seed, number, rank, AUGMENTATION))
            for name, module in self.augmentation.items():
                pixels = module(pixels)
                if pixels.shape != given.shape:
                    raise ValueError(
                        f"data.augmentation.{name} made {tuple(pixels.shape)} of {tuple(given.shape)}: it must keep the"
                        f" shape, so give it size {self.size} or leave it out with ~data.augmentation.{name}"
                    )
        return {**batch, "pixel_values": self.scale(pixels).to(given.dtype)}

    def fingerprint(self) -> str:
        """Also of what is done to the images."""
        done = f"{self.size} {self.channels} {self.scale} {self.augmentation}"
        return hashlib.sha256(f"{super().fingerprint()} {done}".encode()).hexdigest()

    def _rows(self, split: Dataset, name: str, labels: Labels) -> EncodedImages:
        return EncodedImages(split, self.image_column, labels.splits[name], held_out=name == "validation")

    def _decode(self, row: Row) -> Tensor:
        try:
            return decode(row["image"], self.channels, self.size)
        except ValueError as error:
            raise ValueError(
                f"{self.encoded[row['held_out']].told(row['row'])} of data.path={self.path!r} is an image that cannot be"
                f" read ({error}): repair it, or take the row out"
            ) from error


class Digits(TaskData):
    """scikit-learn's handwritten digits: 1,797 grey images of 8×8 pixels, 10 classes, no download.

    pixel_values (B, 1, 8, 8) in [−1, 1]. A fifth is held out, stratified by class, the same for every seed.
    """

    task, head = "digits", "image_classification"

    def read(self) -> tuple[Sequence[Row], Sequence[Row]]:
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1  # from 0…16
        rows = [
            {"pixel_values": image, "labels": label}
            for image, label in zip(images, digits.target.tolist(), strict=True)
        ]
        train, validation = train_test_split(rows, test_size=0.2, random_state=0, stratify=digits.target)
        return train, validation

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        return collate_images(rows)

    @property
    def processor(self) -> ViTImageProcessorPil:
        return image_processor(Scale([1.0], [1.0], 1), 1, 1 / 8, do_resize=False)


def collate_images(rows: Sequence[Row]) -> dict[str, Tensor]:
    """pixel_values (B, channels, height, width) and labels (B,)."""
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def _same(given: Sequence[float], other: Sequence[float], channels: int) -> bool:
    """To a thousandth, as one number stands for all channels."""
    pairs = zip(*(list(values) * (channels // len(values)) for values in (given, other)), strict=True)
    return all(abs(one - another) < 1e-3 for one, another in pairs)


def image_processor(scale: Scale, channels: int, factor: float, **resizing: Any) -> ViTImageProcessorPil:
    """transformers' own, which does to an image of whole numbers what the data does: · factor, − mean, / std."""
    mean, std = (values.flatten().expand(channels).tolist() for values in (scale.mean, scale.std))
    return ViTImageProcessorPil(
        rescale_factor=factor, image_mean=mean, image_std=std, do_convert_rgb=channels == 3, **resizing
    )
