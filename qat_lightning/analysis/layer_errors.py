"""How far the student's signals are from the teacher's, layer by layer.

Shapes: B batch, H heads, N queries, M keys, D head width, E hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qat_lightning.models.capture import Batch, Signals, what_counts
from qat_lightning.models.sites import check_site


def layer_errors(student: Signals, teacher: Signals, batch: Batch, site: str = "hidden") -> list[float]:
    """MSE(X_l^S, X_l^T) for each signal of the site; padding does not count (arXiv:2302.11812 Fig. 2b: layer outputs).

    `hidden` has one more signal than there are layers: its first is the embeddings' output.

    Raises:
        ValueError: an unknown site; models of different depth or width, which have no layer-by-layer error.
    """
    own, other = student[check_site(site)], teacher[site]
    if [tensor.shape for tensor in own] != [tensor.shape for tensor in other]:
        raise ValueError(
            f"{site}: the student's signals ({_shapes(own)}) and the teacher's ({_shapes(other)}) differ in number or"
            " shape, so they cannot be compared layer by layer"
        )
    counts = what_counts(site, batch)
    return [_mean_squared_error(*pair, counts) for pair in zip(own, other, strict=True)]


def _mean_squared_error(student: Tensor, teacher: Tensor, counts: Tensor | None) -> float:
    squares = (student.detach().float() - teacher.detach().float()).square()
    # Selected, not multiplied by the mask: a masked score may be -inf, and its error not a number.
    return float((squares if counts is None else squares[counts.to(squares.device).expand_as(squares)]).mean())


def _shapes(signals: list[Tensor]) -> str:
    shapes = dict.fromkeys(str(tuple(tensor.shape)) for tensor in signals)
    return f"{len(signals)} of shape {' and '.join(shapes) or 'none'}"


def valid_tokens(batch: Batch, sample: int = 0) -> Tensor | None:
    """The positions of one sample that are not padding; None where nothing is padded."""
    mask = batch.get("attention_mask")
    return None if mask is None else torch.nonzero(mask[sample].cpu()).flatten()


def sample_map(maps: Tensor, batch: Batch, sample: int = 0) -> Tensor:
    """(B, H, N, M) attention maps of a batch → (H, n, m) of one sample, without its padding."""
    own = maps[sample].detach().float().cpu()
    valid = valid_tokens(batch, sample)
    return own if valid is None else own[:, valid][:, :, valid]
