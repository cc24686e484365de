"""The released BertAdam with its warm-up, one tensor at a time, in float64 numpy. Imports nothing of qat_lightning.

Sources: arXiv:2009.12812 and 2302.11812, released code. The release gives the first step of a warm-up a factor of 0; here,
as in qat_lightning, the warm-up of w steps goes 1/(w + 1), 2/(w + 1), … instead, and the decay (n − step)/(n − w).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Array = np.ndarray
FIRST, SECOND, EPSILON = 0.9, 0.999, 1e-6


def factor(step: int, steps: int, warmup: float = 0.1) -> float:
    """Of the peak rate, at a step counted from 0."""
    rising = int(warmup * steps)
    return (step + 1) / (rising + 1) if step < rising else (steps - step) / (steps - rising)


def trained(
    weight: Array, gradients: Sequence[Array | None], peak: float, decay: float, clip: float, own_count: bool
) -> tuple[Array, list[float]]:
    """The weight after all steps, and the factor of each step in which it had a gradient.

    Args:
        gradients: of each step; None where the tensor has none.
        own_count: the schedule's step is the number of gradients that this tensor has had before; else that of all steps.
    """
    mean, square, taken, factors = np.zeros_like(weight), np.zeros_like(weight), 0, []
    for step, gradient in enumerate(gradients):
        if gradient is None:
            continue
        factors.append(factor(taken if own_count else step, len(gradients)))
        gradient = gradient * min(1.0, clip / (np.linalg.norm(gradient) + 1e-6))
        mean = FIRST * mean + (1 - FIRST) * gradient
        square = SECOND * square + (1 - SECOND) * gradient**2
        weight = weight - peak * factors[-1] * (mean / (np.sqrt(square) + EPSILON) + decay * weight)
        taken += 1
    return weight, factors
