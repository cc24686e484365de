"""Quantizers with a learned threshold or step, and the binary and affine ones, in float64 numpy from their formulas.

Imports nothing of qat_lightning. Sources: KDLSQ-BERT, arXiv:2101.05938 §3 and its released code; LSQ, arXiv:1902.08153
§2; BWN, arXiv:1603.05279 §3.1; min-max, arXiv:2009.12812 §3.2; the mean range, arXiv:2211.11014, released code,
corrected to 2^bits levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
SHARE = 0.05
"""γ: half of it is cut off at each end of the sorted values."""


@dataclass
class Backward:
    """What a forward pass gives, and what its backward pass makes of an incoming gradient."""

    output: Array
    input_gradient: Array
    learned_gradient: float


def largest_code(bits: int) -> int:
    return 2 ** (bits - 1) - 1


def threshold(x: Array, alpha: float, bits: int, gradient: Array, clip_gradient: bool) -> Backward:
    """x̂ = α·round(clip(x/α, −1, 1)·Q)/Q; g_α = Σ g·[sign(x) where |x| > α, else (x̂ − x)/α]."""
    codes = np.round(np.clip(x / alpha, -1.0, 1.0) * largest_code(bits))
    output = alpha * codes / largest_code(bits)
    beyond = np.abs(x) > alpha
    slope = np.where(beyond, np.sign(x), (output - x) / alpha)
    passed = np.where(beyond, 0.0, gradient) if clip_gradient else gradient
    return Backward(output, passed, float((gradient * slope).sum()))


def step_range(bits: int, signed: bool) -> tuple[int, int]:
    """(Q_N, Q_P)"""
    return (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def step(v: Array, size: float, bits: int, signed: bool, gradient: Array, scaled: bool) -> Backward:
    """v̂ = s·round(clip(v/s, −Q_N, Q_P)); ∂v̂/∂s = round(v/s) − v/s inside, −Q_N below, Q_P above; ∂v̂/∂v = 1 inside, else 0.

    Args:
        scaled: multiply ∂/∂s by 1/√(N·Q_P), N the number of elements.
    """
    below, above = step_range(bits, signed)
    ratio = v / size
    output = size * np.round(np.clip(ratio, -below, above))
    slope = np.where(ratio < -below, -below, np.where(ratio > above, above, np.round(ratio) - ratio))
    inside = (ratio >= -below) & (ratio <= above)
    factor = 1 / np.sqrt(v.size * above) if scaled else 1.0
    return Backward(output, np.where(inside, gradient, 0.0), float((gradient * slope).sum() * factor))


def percentile(x: Array) -> float:
    """max(|x_(r)|, |x_(n−r)|), r = round(γn/2), of the values sorted ascending and counted from 0; x_(n) means the last."""
    ordered = np.sort(x.ravel())
    count = len(ordered)
    cut = round(SHARE * count / 2)
    return float(max(abs(ordered[cut]), abs(ordered[min(count - cut, count - 1)])))


def lsq_step(v: Array, bits: int, signed: bool = True) -> float:
    """s = 2·mean|v|/√Q_P"""
    return float(2 * np.abs(v).mean() / np.sqrt(step_range(bits, signed)[1]))


def kl(x: Array, bits: int) -> float:
    """The cut of |x|'s histogram (√n bins) whose distribution function survives 2^(bits−1) points best.

    For every cut i > n_q the CDF of the first i bins is resampled to n_q points and back by straight lines; the smallest
    Σ(c − q)·log2(c/q) wins; α = (i + 0.5)·width of a bin. None where there are no such cuts.
    """
    magnitude, points = np.abs(x).ravel(), 2 ** (bits - 1)
    bins = int(np.sqrt(len(magnitude)))
    counts, edges = np.histogram(magnitude, bins, (0.0, float(magnitude.max())))
    whole = np.cumsum(counts) / len(magnitude)
    best, chosen = np.inf, -1
    for cut in range(points + 1, bins):
        inside = whole[:cut].copy()
        inside[-1] = 1.0
        places, coarse = np.linspace(0, 1, cut), np.linspace(0, 1, points)
        back = np.interp(places, coarse, np.interp(coarse, places, inside))
        seen = (inside > 0) & (back > 0)
        distance = ((inside - back) * np.log2(np.where(seen, inside, 1) / np.where(seen, back, 1)))[seen].sum()
        if distance < best:
            best, chosen = distance, cut
    return float((chosen + 0.5) * edges[1])


def binary(w: Array) -> Array:
    """mean|w|·sign(w), where the sign of 0 is +1."""
    return np.abs(w).mean() * np.where(w >= 0, 1.0, -1.0)


def levels(x: Array, low: float, high: float, bits: int) -> Array:
    """The nearest of 2^bits levels from low to high; x itself where they coincide."""
    if high == low:
        return np.full_like(x, low)
    grid = low + (high - low) * np.arange(2**bits) / (2**bits - 1)
    return grid[np.abs(x[..., None] - grid).argmin(-1)]


def affine(x: Array, bits: int, kind: str) -> Array:
    """minmax: levels min…max · symmetric: −max|x|…max|x| · mean: ±T with T the mean of |x| over |x| > mean|x|."""
    if kind == "minmax":
        return levels(x, float(x.min()), float(x.max()), bits)
    magnitude = np.abs(x)
    bound = magnitude.max() if kind == "symmetric" else magnitude[magnitude > magnitude.mean()].mean()
    return levels(x, -float(bound), float(bound), bits)


def grouped(of_one: Callable[[Array], Array], x: Array, granularity: str, group_size: int | None = None) -> Array:
    """Each row, or each run of `group_size` along a row, by itself."""
    if granularity == "per_tensor":
        return of_one(x)
    rows = x.reshape(-1, group_size or x.shape[-1])
    return np.stack([of_one(row) for row in rows]).reshape(x.shape)
