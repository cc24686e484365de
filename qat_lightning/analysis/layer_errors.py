"""The error of the student's signals against the teacher's, layer by layer.

Shapes: B batch, H heads, N queries, M keys, D head width, E hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qat_lightning.models.capture import Batch, Signals, what_counts
from qat_lightning.models.sites import check_site


def layer_errors(student: Signals, teacher: Signals, batch: Batch, site: str = "hidden") -> list[float]:
    """Compute MSE(X_l^S, X_l^T) for each signal of the site, without padding (arXiv:2302.11812 Fig. 2b: layer outputs).

    `hidden` starts with the output of the embeddings. Raises ValueError for models of different depth or width.
    """
    own, other = student[check_site(site)], teacher[site]
    if [tensor.shape for tensor in own] != [tensor.shape for tensor in other]:
        raise ValueError(f"{site}: the student has {_shapes(own)}, the teacher {_shapes(other)}: they do not match")
    counts, errors = what_counts(site, batch), []
    for left, right in zip(own, other, strict=True):
        squares = (left.detach().float() - right.detach().float()).square()
        # Selected, not multiplied by the mask: a masked score may be -inf, and its error not a number.
        chosen = squares if counts is None else squares[counts.to(squares.device).expand_as(squares)]
        errors.append(float(chosen.mean()))
    return errors


def _shapes(signals: list[Tensor]) -> str:
    shapes = dict.fromkeys(str(tuple(tensor.shape)) for tensor in signals)
    return f"{len(signals)} of shape {' and '.join(shapes) or 'none'}"


def valid_tokens(batch: Batch, sample: int = 0) -> Tensor | None:
    """Return the positions of one sample that are not padding; None without padding."""
    mask = batch.get("attention_mask")
    return None if mask is None else torch.nonzero(mask[sample].cpu()).flatten()


def sample_map(maps: Tensor, batch: Batch, sample: int = 0) -> Tensor:
    """Select one sample of attention maps (B, H, N, M), without its padding: (H, n, m)."""
    own = maps[sample].detach().float().cpu()
    valid = valid_tokens(batch, sample)
    return own if valid is None else own[:, valid][:, :, valid]
