"""The dynamic range of a signal. Shapes: B batch, N tokens, E hidden width, T tokens of the batch without padding."""

from __future__ import annotations

import torch
from torch import Tensor

from qat_lightning.models.capture import Batch, Signals, what_counts
from qat_lightning.models.sites import AXES, check_site


def dynamic_range(signals: Signals, batch: Batch, site: str = "attention.output") -> list[Tensor]:
    """Return the smallest and the largest hidden unit of each token that is not padding, (T, 2) for each signal of the site.

    Source: arXiv:2211.11014 Fig. 5, where Y is `attention.output`.

    Raises:
        ValueError: an unknown site, or one whose signals are not (B, N, E).
    """
    if AXES[check_site(site)] != "BNE":
        raise ValueError(f"site={site!r} has no hidden units: choose hidden or attention.output, of shape (B, N, E)")
    counts = what_counts(site, batch)
    found = []
    for signal in signals[site]:
        wide = signal.detach().to(torch.promote_types(signal.dtype, torch.float32))
        tokens = wide.flatten(0, 1) if counts is None else wide[counts.squeeze(-1).to(wide.device)]
        found.append(torch.stack([tokens.amin(-1), tokens.amax(-1)], -1))
    return found
