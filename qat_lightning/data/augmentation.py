"""Augment training images at random: images (B, C, H, W) with pixels in [0, 1] → the same shape.

Each module draws only from torch's global generator, which `ImageClassificationData` seeds for every batch, as modules of
`kornia.augmentation` do. Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math

import torch
from kornia.augmentation import auto
from torch import Tensor, nn
from torch.nn import functional

_SHEAR = math.degrees(math.atan(0.3)) / 180  # the paper's is a slope, kornia's a part of 180 degrees
SPACE = (
    ("auto_contrast", 0, 1), ("equalize", 0, 1), ("rotate", -30.0, 30.0), ("posterize", 4.0, 8.0), ("solarize", 0.0, 1.0),
    ("color", 0.1, 1.9), ("contrast", 0.1, 1.9), ("brightness", 0.1, 1.9), ("sharpness", 0.1, 1.9),
    ("shear_x", -_SHEAR, _SHEAR), ("shear_y", -_SHEAR, _SHEAR), ("translate_x", -0.3, 0.3), ("translate_y", -0.3, 0.3),
)  # fmt: skip
"""RandAugment's operations and their ranges (arXiv:1909.13719 §3); translations are fractions of the width."""


class Crop(nn.Module):
    """Pad with black on all sides, then cut out H × W pixels at a random position: arXiv:1512.03385 §4.2.

    Args:
        padding: fraction of the height on each side; the paper's 4 of CIFAR's 32 pixels are 0.125.
    """

    def __init__(self, padding: float = 0.125) -> None:
        super().__init__()
        if not 0 < padding <= 1:
            raise ValueError(
                f"padding={padding} must be a fraction of the height, above 0 and at most 1: 0.125 pads 4 of 32"
            )
        self.padding = padding

    def forward(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        pixels = round(self.padding * height)
        padded = functional.pad(images, [pixels] * 4)
        corners = torch.randint(2 * pixels + 1, (count, 2)).tolist()
        pairs = zip(padded, corners, strict=True)
        return torch.stack([image[:, top : top + height, left : left + width] for image, (top, left) in pairs])

    def extra_repr(self) -> str:
        return f"padding={self.padding}"


class Flip(nn.Module):
    """Mirror each image left to right with a probability."""

    def __init__(self, probability: float = 0.5) -> None:
        super().__init__()
        if not 0 <= probability <= 1:
            raise ValueError(f"probability={probability} must be in 0…1")
        self.probability = probability

    def forward(self, images: Tensor) -> Tensor:
        mirrored = torch.rand(len(images), 1, 1, 1) < self.probability
        return torch.where(mirrored.to(images.device), images.flip(-1), images)

    def extra_repr(self) -> str:
        return f"probability={self.probability}"


class TrivialAugment(nn.Module):
    """Apply one random operation of `SPACE`, or none, with a random strength to each image: arXiv:2103.10158 §3 (RA).

    kornia's own class gives all images of a batch the same operation, shears up to 54 degrees and posterizes to black.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = auto.TrivialAugment([[operation] for operation in SPACE])

    def forward(self, images: Tensor) -> Tensor:
        colored = images.expand(-1, 3, -1, -1)  # a grey image for operations on colors
        left = torch.rand(len(images)) < 1 / (1 + len(SPACE))
        changed = [
            image if keep else self.operations(image[None])[0]
            for image, keep in zip(colored, left.tolist(), strict=True)
        ]
        return torch.stack(changed)[:, : images.shape[1]]

    def extra_repr(self) -> str:
        return f"{SPACE}"
