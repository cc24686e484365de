"""Image classification and regression, on image files or on scikit-learn's digits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import torch
from datasets import Dataset
from PIL import Image as Pillow
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from transformers import ViTImageProcessorPil

from qat_lightning.data.base import Row, TaskData
from qat_lightning.data.dataset_files import read_table
from qat_lightning.data.file_formats import Column
from qat_lightning.data.image_decoding import EncodedImages, Scale, decode, image_files, read_images
from qat_lightning.data.labels import UNLABELLED, LabelColumn, read_labels
from qat_lightning.data.samplers import seed_of

HALF = (0.5,)
"""ViT's mean and deviation."""

AUGMENTATION = 1
"""Distinguishes the seed of augmentation from that of dropout, which depends on the same three numbers."""


class ImageClassificationData(TaskData):
    """Batches of pixel_values (B, channels, size, size) float32, (pixels / 255 − mean) / std, and labels (B,).

    Args:
        path: hub id such as uoft-cs/cifar10, or a folder with `train.*` and `validation.*` as parquet, or with image
            files in a folder for each class (train/cat/1.png).
        name: configuration on the hub; None for none.
        image_column: the column of PNG, JPEG … files.
        label_column: the column of labels: whole numbers from 0, names, or numbers for a regression (num_labels=1).
        label_names: the classes in the order of their numbers; None for the model's order, else the data's own.
        unlabelled: labels of rows without a class, beside null: such rows are left out, and counted.
        train_split, validation_split: names of the splits.
        size: the model's height and width in pixels; other images are resized.
        channels: 3 for RGB, 1 for grey; other images are converted.
        mean, std: one number for all channels or one for each; None for the model's own, else 0.5.
        augmentation: name → module, images (B, C, H, W) in [0, 1] → the same shape, applied in this order to training
            batches.

    Raises:
        ValueError: an argument out of range; when read, a missing column, no image, a label out of range.
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
            raise ValueError(f"size={size} must be 1 or more: the model's height and width in pixels")
        if channels not in (1, 3):
            raise ValueError(f"channels={channels} must be 3 for RGB, or 1 for grey")
        self.path, self.name, self.task = path, name, Path(path).name
        self.image_column, self.label_column = image_column, label_column
        names = None if label_names is None else [*map(str, label_names)]
        self.labels = LabelColumn(label_column, self.num_labels, names, unlabelled=unlabelled)
        self.splits = {"train": train_split, "validation": validation_split}
        self.size, self.channels = size, channels
        self.statistics = {"mean": mean, "std": std}
        self.scale = Scale(mean or HALF, std or HALF, channels)
        self.augmentation = dict(augmentation or {})
        for key, module in self.augmentation.items():
            if not isinstance(module, nn.Module):
                raise ValueError(f"augmentation={{{key!r}: {module!r}}} is not a torch module")

    def follow_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Use the model's mean and deviation of pixels in [0, 1], unless others were given; note a difference."""
        own = {"mean": list(mean), "std": list(std)}
        for argument, given in self.statistics.items():
            if given is not None and not _is_same(given, own[argument], self.channels):
                self.notes.append(
                    f"{argument}={list(given)} is not the model's {own[argument]} (preprocessor_config.json): remove it to use"
                    " the model's"
                )
        chosen = {argument: given or own[argument] for argument, given in self.statistics.items()}
        self.scale = Scale(chosen["mean"], chosen["std"], self.channels)

    def read(self) -> tuple[Sequence[Row], Sequence[Row]]:
        image = Column(self.image_column, "name the column with image_column=…", text=True)
        label = Column(self.label_column, "name the column with label_column=…")
        tables = {split: read_images(self.path, self.name, own, image, label) for split, own in self.splits.items()}
        labels = read_labels(tables, replace(self.labels, model_names=self.model_names))
        self.label_names, self.notes = labels.names, [*self.notes, *labels.notes]
        self.encoded = [
            EncodedImages(table, self.image_column, labels.splits[split], held_out=split == "validation")
            for split, table in tables.items()
        ]
        return self.encoded[0], self.encoded[1]

    def read_unlabelled(self, source: Path) -> tuple[Sequence[Row], pyarrow.Table]:
        if source.is_dir():
            table = pyarrow.table({self.image_column: [str(file) for file in image_files(source)]})
        else:
            table = read_table(source, [Column(self.image_column, "name the column with image_column=…", text=True)])
        self.encoded = [EncodedImages(Dataset(table), self.image_column, [0] * len(table), held_out=True)] * 2
        paths = pyarrow.types.is_string(table[self.image_column].type)
        return self.encoded[1], table if paths else table.drop_columns([self.image_column])

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        pixels = torch.stack([self._decode(row) for row in rows]) / 255
        return {"pixel_values": self.scale(pixels), "labels": torch.tensor([row["labels"] for row in rows])}

    def _decode(self, row: Row) -> Tensor:
        try:
            return decode(row["image"], self.channels, self.size)
        except ValueError as error:
            raise ValueError(
                f"{self.encoded[row['held_out']].origin(row['row'])} of path={self.path!r} is an image that cannot be read"
                f" ({error}): repair it, or remove the row"
            ) from error

    @property
    def processor(self) -> ViTImageProcessorPil:
        sides = {"height": self.size, "width": self.size}
        return image_processor(self.scale, self.channels, 1 / 255, size=sides, resample=Pillow.Resampling.BILINEAR)

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Augment a training batch on the device, just before its step (Lightning's hook)."""
        if not self.augmentation or self.trainer is None or not self.trainer.training:
            return batch
        done = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        return self.augment(batch, done, self.trainer.global_rank)

    @torch.no_grad()
    def augment(self, batch: dict[str, Tensor], number: int, rank: int = 0) -> dict[str, Tensor]:
        """Change the images of a batch at random, as a pure function of (batch, seed, number, rank).

        Args:
            number: the number of batches before this one in the stage.
        """
        given = batch["pixel_values"]
        pixels = self.scale.undo(given.float())
        with torch.random.fork_rng([given.device] if given.is_cuda else []):
            torch.manual_seed(seed_of(self.seed, number, rank, AUGMENTATION))
            for name, module in self.augmentation.items():
                pixels = module(pixels)
                if pixels.shape != given.shape:
                    raise ValueError(
                        f"data.augmentation.{name} turned {tuple(given.shape)} into {tuple(pixels.shape)}: it must keep the"
                        f" shape, so set its size to {self.size}, or remove it with ~data.augmentation.{name}"
                    )
        return {**batch, "pixel_values": self.scale(pixels).to(given.dtype)}

    def fingerprint(self) -> str:
        """Hash the rows and the processing of the images."""
        processing = f"{self.size} {self.channels} {self.scale} {self.augmentation}"
        return hashlib.sha256(f"{super().fingerprint()} {processing}".encode()).hexdigest()


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
    """Stack pixel_values (B, channels, height, width) and labels (B,)."""
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def _is_same(given: Sequence[float], other: Sequence[float], channels: int) -> bool:
    """Compare to a thousandth; a single number counts for all channels."""
    pairs = zip(*(list(values) * (channels // len(values)) for values in (given, other)), strict=True)
    return all(abs(one - another) < 1e-3 for one, another in pairs)


def image_processor(scale: Scale, channels: int, factor: float, **resizing: Any) -> ViTImageProcessorPil:
    """Return transformers' processor that computes (image · factor − mean) / std of an image of whole numbers."""
    mean, std = (values.flatten().expand(channels).tolist() for values in (scale.mean, scale.std))
    return ViTImageProcessorPil(
        rescale_factor=factor, image_mean=mean, image_std=std, do_convert_rgb=channels == 3, **resizing
    )
