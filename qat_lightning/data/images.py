"""Images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from qat_lightning.data.base import Row, TaskData


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


def collate_images(rows: Sequence[Row]) -> dict[str, Tensor]:
    """pixel_values (B, channels, height, width) and labels (B,)."""
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }
