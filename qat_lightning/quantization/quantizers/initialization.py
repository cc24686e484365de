"""Where a learned clipping threshold begins: (values (groups, n), bits, largest code, tail) → threshold (groups,).

All say how far from zero values are kept, so they serve a learned step as well: s = threshold / largest code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

Initialization = Literal["percentile", "kl", "lsq", "minmax"]

CHUNK = 2**22
"""Elements worked on at once in the search of `kl`."""


def minmax(values: Tensor, bits: int, largest_code: float, tail: float) -> Tensor:
    """Return max|x|."""
    return values.abs().amax(-1)


def lsq(values: Tensor, bits: int, largest_code: float, tail: float) -> Tensor:
    """Return the threshold of s = 2·mean|v|/√Q_P: 2·mean|v|·√Q_P (arXiv:1902.08153 §2.1)."""
    return 2 * values.abs().mean(-1) * largest_code**0.5


def percentile(values: Tensor, bits: int, largest_code: float, tail: float) -> Tensor:
    """max(|x_(r)|, |x_(n−r)|) of the ascending values x_(0) … x_(n−1), r = round(γ·n/2), γ = tail.

    KDLSQ-BERT's scale-factor initialization (arXiv:2101.05938), as re-implemented in KD-QAT's development code.
    """
    count = values.shape[-1]
    cut = round(tail * count / 2)
    lower = values.kthvalue(min(cut, count - 1) + 1, -1).values  # kthvalue counts from 1
    upper = values.kthvalue(min(count - cut, count - 1) + 1, -1).values
    return torch.maximum(lower.abs(), upper.abs())


def kl(values: Tensor, bits: int, largest_code: float, tail: float) -> Tensor:
    """The cut of the histogram of |x| that a coarse grid keeps best (arXiv:2101.05938, released code).

    √n bins, n_q = 2^(bits−1). For each cut after i > n_q bins, the values beyond it are put into the last bin, the cumulative
    distribution is read off at n_q points and joined up again by straight lines; of all cuts the one with the smallest
    Σ(c − q)·log₂(c/q) over all bins is kept, and the threshold is (i + ½)·(bin width). Where there are too few values
    for that, max|x| (the release leaves 4.0).
    """
    return torch.stack([_kl_of_one(group, 2 ** (bits - 1)) for group in values.abs()])


INITIALIZATIONS: Mapping[str, Callable[[Tensor, int, float, float], Tensor]] = {
    "percentile": percentile,
    "kl": kl,
    "lsq": lsq,
    "minmax": minmax,
}


def _kl_of_one(magnitudes: Tensor, points: int) -> Tensor:
    top, bins = magnitudes.max(), int(magnitudes.numel() ** 0.5)
    if bins <= points + 1 or not top > 0:
        return top
    histogram = torch.histc(magnitudes.float(), bins, 0.0, float(top)).double()
    cumulative = histogram.cumsum(0) / histogram.sum()
    cuts = torch.arange(points + 1, bins + 1, device=magnitudes.device)
    chunks = cuts.split(max(1, CHUNK // bins))
    divergence = torch.cat([_divergence(cumulative, chunk[:, None], points) for chunk in chunks])
    best = cuts[divergence.argmin()]
    return ((best + 0.5) * (top / bins)).clamp(max=top)


def _divergence(cumulative: Tensor, cuts: Tensor, points: int) -> Tensor:
    """Σ(c − q)·log₂(c/q) for each cut (K, 1); 1 is the sum up to the bin of a cut."""
    places = torch.arange(points, device=cuts.device) * ((cuts - 1) / (points - 1))  # in bins
    coarse = _read(cumulative.expand(len(cuts), -1), places, cuts)
    bins = torch.arange(len(cumulative), device=cuts.device)
    fine = _lerp(coarse, bins * ((points - 1) / (cuts - 1)), points - 1)
    fine = torch.where(bins < cuts - 1, fine, 1.0)
    ratio = torch.where((cumulative > 0) & (fine > 0), cumulative / fine, 1.0)
    return ((cumulative - fine) * ratio.log2()).sum(-1)


def _read(cumulative: Tensor, places: Tensor, cuts: Tensor) -> Tensor:
    """Read the clipped distribution at fractional bins: 1 at the last bin before the cut."""
    below = places.floor().clamp(max=cumulative.shape[-1] - 2).long()

    def at(bins: Tensor) -> Tensor:
        return torch.where(bins >= cuts - 1, 1.0, cumulative.gather(-1, bins.clamp(max=cumulative.shape[-1] - 1)))

    return torch.lerp(at(below), at(below + 1), (places - below).double())


def _lerp(values: Tensor, places: Tensor, last: int) -> Tensor:
    below = places.floor().clamp(0, last - 1).long()
    return torch.lerp(values.gather(-1, below), values.gather(-1, below + 1), (places - below).clamp(0, 1).double())
