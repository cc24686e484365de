"""The loss in a plane through a model's weights (Li et al., Visualizing the Loss Landscape of Neural Nets, 2018)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Landscape:
    """losses[row][column] = loss(w + steps[column]·d₁ + steps[row]·d₂)."""

    steps: list[float]
    losses: list[list[float]]


def random_direction(parameters: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Draw normal numbers, scale each column (over dim 0) to the norm of the weight's; 0 for biases and normalization.

    Source: arXiv:2211.11014, released code.
    """
    direction = []
    for parameter in parameters:
        if parameter.dim() <= 1:
            direction.append(torch.zeros_like(parameter))
            continue
        drawn = torch.randn(parameter.shape, generator=generator)
        weight = parameter.detach().to("cpu", torch.float32)
        scale = weight.norm(dim=0, keepdim=True) / drawn.norm(dim=0, keepdim=True).clamp(min=torch.finfo().tiny)
        direction.append((drawn * scale).to(parameter))
    return direction


@torch.no_grad()
def loss_landscape(
    loss: Callable[[], Tensor | float], parameters: Iterable[Tensor], points: int = 21, span: float = 1.0, seed: int = 0
) -> Landscape:
    """Compute the loss on a grid over [−span, span]² around the weights, in two random directions (`random_direction`).

    The loss is called points² times without gradients; the model should be in evaluation mode. The weights are changed in
    place and restored exactly, also after an error. Memory: three times the parameters. The directions, drawn with `seed`, do
    not depend on the device.

    Source: arXiv:2211.11014, released code (21 × 21 points on [−1, 1]²), and 2302.11812 Fig. 2 (±0.5).

    Raises:
        ValueError: fewer than 2 points, or a span that is not positive.
    """
    if points < 2 or not span > 0:
        raise ValueError(f"points={points} must be 2 or more and span={span} positive")
    moved = list(parameters)
    generator = torch.Generator().manual_seed(seed)
    first, second = random_direction(moved, generator), random_direction(moved, generator)
    # exactly symmetric with 0 in the middle, which linspace does not guarantee
    steps = [span * (2 * index - (points - 1)) / (points - 1) for index in range(points)]
    losses: list[list[float]] = []
    with _restored(moved) as values:
        for up in steps:
            losses.append([])
            for across in steps:
                for parameter, weight, one, other in zip(moved, values, first, second, strict=True):
                    parameter.copy_(weight + across * one + up * other)
                losses[-1].append(float(loss()))
    return Landscape(steps, losses)


@contextmanager
def _restored(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the values of the parameters, and restore them at the end of the block."""
    values = [parameter.detach().clone() for parameter in parameters]
    try:
        yield values
    finally:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
