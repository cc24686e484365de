"""Answers as spans of tokens: the labels of a feature, and the best span of a model's logits.

Shapes: B batch, N tokens, K candidates. offsets (N, 2) are each token's first character and the one after its last in
the context, −1 for a token outside of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

NOWHERE = (0, 0)
"""Labels of a feature without the complete answer: both at the first token ([CLS])."""


def token_span(offsets: Tensor, start: int, end: int) -> tuple[int, int]:
    """Return first and last token of the characters start…end−1 of the context; `NOWHERE` if one of them is missing."""
    context = offsets[offsets[:, 0] >= 0]
    if not len(context) or context[0, 0] > start or context[-1, 1] < end:
        return NOWHERE
    overlapping = ((offsets[:, 0] >= 0) & (offsets[:, 0] < end) & (offsets[:, 1] > start)).nonzero()
    return (int(overlapping[0]), int(overlapping[-1])) if len(overlapping) else NOWHERE


def best_spans(start: Tensor, end: Tensor, offsets: Tensor, n_best: int, max_length: int) -> tuple[Tensor, Tensor]:
    """Find the best answer of each feature: max of start_i + end_j over i ≤ j < i + max_length inside the context.

    i and j are among the `n_best` highest logits of the context's tokens, as in SQuAD's common evaluation scripts.

    Args:
        start, end: logits (B, N).
        offsets: (B, N, 2).
        max_length: largest number of tokens of an answer.

    Returns:
        Scores (B,), −∞ without a valid pair, and characters (B, 2), first and one after the last, 0 and 0 without one.
    """
    outside, count = offsets[..., 0] < 0, min(n_best, start.shape[1])
    (starts, first), (ends, last) = (
        logits.masked_fill(outside, -torch.inf).topk(count) for logits in (start, end)
    )  # (B, K) each
    tokens = last[:, None, :] - first[:, :, None] + 1
    scores = (starts[:, :, None] + ends[:, None, :]).masked_fill((tokens < 1) | (tokens > max_length), -torch.inf)
    best, pair = scores.flatten(1).max(1)  # pair = start · K + end
    first, last = (
        places.gather(1, chosen[:, None]) for places, chosen in ((first, pair // count), (last, pair % count))
    )
    characters = torch.cat([offsets[..., 0].gather(1, first), offsets[..., 1].gather(1, last)], 1)
    return best, characters.masked_fill((best == -torch.inf)[:, None], 0)
