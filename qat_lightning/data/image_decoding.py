"""Read image files and decode them to pixels when their batch is made, so that a set need not fit into memory as pixels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pillow
from PIL import ImageOps
from torch import Tensor

from qat_lightning.data.base import Row
from qat_lightning.data.dataset_files import read_split
from qat_lightning.data.file_formats import Column

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


NOT_IMAGES = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN")
"""Folders that archives, network drives and trash add, with images that are not the user's."""


class EncodedImages(Sequence[Row]):
    """One split's labelled rows: "image", the bytes of an image file (L,) uint8, "labels", and their origin ("row", "held_out").

    Args:
        column: the column of image files: bytes, a path, or {"bytes", "path"} as the `datasets` library stores an image.
        labels: the label of each image; None for an image that is left out.
        held_out: True for the validation split.

    Raises:
        ValueError: when a row without an image file is read.
    """

    def __init__(self, split: Dataset, column: str, labels: Sequence[int | float | None], held_out: bool) -> None:
        if isinstance(split.features[column], Image):
            split = split.cast_column(column, Image(decode=False))
        self.images, self.column, self.labels, self.held_out = split.select_columns(column), column, labels, held_out
        self.rows = [row for row, label in enumerate(labels) if label is not None]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row:  # type: ignore[override]
        row = self.rows[number]
        value = self.images[row][self.column]
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str) and Path(value).is_file():
            value = Path(value).read_bytes()
        encoded = value if isinstance(value, bytes) else b""
        # the fingerprint reads all rows before a run starts, so this check comes before training
        if not _is_image(encoded):
            raise ValueError(
                f"{self.origin(row)} has no image file in column {self.column!r}: name a column of images with"
                " image_column=…, or remove the row"
            )
        # a copy, as torch needs writable memory
        image = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        return {"image": image, "labels": self.labels[row], "row": row, "held_out": self.held_out}

    def origin(self, row: int) -> str:
        """Return `row 12 of the train split`, with its file if it has its own."""
        value = self.images[row][self.column]
        file = f" ({value!r})" if isinstance(value, str) else ""
        return f"row {row} of the {'validation' if self.held_out else 'train'} split{file}"


class Scale:
    """Pixels in [0, 1] → (pixels − mean) / std, each (B, C, H, W) float32.

    Args:
        mean, std: one number for all channels, or one for each.

    >>> Scale([0.5], [0.5], channels=1)(torch.ones(1, 1, 1, 1)).item()
    1.0
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels: int) -> None:
        for argument, given in (("mean", mean), ("std", std)):
            if len(given) not in (1, channels):
                raise ValueError(
                    f"{argument}={list(given)} must be a list of one number, or of {channels}, one per channel"
                )
        if min(std) <= 0:
            raise ValueError(f"std={list(std)} must be above 0")
        self.mean, self.std = (torch.tensor(list(given), dtype=torch.float32).view(-1, 1, 1) for given in (mean, std))

    def __call__(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean.to(pixels.device)) / self.std.to(pixels.device)

    def undo(self, scaled: Tensor) -> Tensor:
        """Return the pixels in [0, 1]."""
        return scaled * self.std.to(scaled.device) + self.mean.to(scaled.device)

    def __repr__(self) -> str:
        return f"Scale({self.mean.flatten().tolist()}, {self.std.flatten().tolist()})"


def read_images(path: str, name: str | None, split: str, image: Column, label: Column) -> Dataset:
    """Read the rows of `split` as `read_split` does, or from a folder with a folder of image files for each class.

    Args:
        path: hub id, or folder with train.parquet … or train/cat/1.png …

    Raises:
        ValueError: as `read_split`, or a folder without images of a class.
    """
    folder = Path(path) / split
    if not folder.is_dir():
        return read_split(path, name, split, [image, label])
    classes = sorted(place.name for place in folder.iterdir() if place.is_dir() and not _hidden(place.name))
    files = [(file, number) for number, word in enumerate(classes) for file in image_files(folder / word)]
    if not files:
        raise ValueError(
            f"{str(folder)!r} has no images: give each class a folder in it ({split}/CLASS/NAME.png, also"
            f" {', '.join(suffix[1:] for suffix in SUFFIXES[1:])})"
        )
    columns = {image.name: [str(file) for file, _ in files], label.name: [number for _, number in files]}
    return Dataset.from_dict(columns, Features({image.name: Value("string"), label.name: ClassLabel(names=classes)}))


def decode(encoded: Tensor, channels: int, size: int) -> Tensor:
    """Decode a file's bytes (L,) to pixels (channels, size, size) uint8: upright, grey or RGB, resized bilinearly.

    Raises:
        ValueError: not an image, or a damaged one.
    """
    try:
        with Pillow.open(io.BytesIO(encoded.numpy().tobytes())) as file:
            if file.mode.startswith(("I", "F")):
                raise ValueError("pixels of more than 8 bits, convert it to 8")
            image = ImageOps.exif_transpose(file).convert("L" if channels == 1 else "RGB")
            if image.size != (size, size):
                image = image.resize((size, size), Pillow.Resampling.BILINEAR)
    except Exception as error:  # a decoder may raise anything for a damaged file
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    return torch.from_numpy(numpy.array(image)).reshape(size, size, channels).permute(2, 0, 1)


def image_files(folder: Path) -> list[Path]:
    """Return the image files of a folder and its subfolders, except hidden ones."""
    files = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    return sorted(file for file in files if not any(map(_hidden, file.relative_to(folder).parts)))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in NOT_IMAGES


def _is_image(encoded: bytes) -> bool:
    """Return whether the bytes start as an image file does; no pixel is decoded."""
    try:
        with Pillow.open(io.BytesIO(encoded)):
            return True
    except Exception:  # a reader of any format may raise anything
        return False
