"""The best span of a model's logits, and SQuAD's exact match and F1 of the best answer over all features of a question."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text.squad import squad
from torchmetrics.utilities import dim_zero_cat

Score = Literal["f1", "exact_match"]


class AnswerKey:
    """Contexts and accepted answers by the number of the question; empty until the data is read.

    All copies of a metric share one key, also those made before the data is read.
    """

    def __init__(self) -> None:
        self.contexts: list[str] = []
        self.answers: list[list[str]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> AnswerKey:
        return self


class AnswerScore(Metric):
    """Mean over the questions of the best score against any accepted answer, from 0 to 1 (arXiv:1606.05250 §6.1).

    torchmetrics and the official script give 100 times this value. An unanswerable question has the accepted answer "", as
    in SQuAD 2.0's official script. Questions without a feature do not count.

    `update` takes `SquadData.predict`'s (F, 4): score, score of no answer, first character, one after the last (exact
    in float32 up to 2²⁴ characters); and the numbers (F,) of the questions. The answer is that of the feature with the
    best score, or "" if the smallest score of no answer is higher.

    Args:
        score: "f1" of the words of both answers, or "exact_match" of the answers, in lower case without punctuation and
            articles.

    Attributes:
        key: contexts and answers, set by the data module.
    """

    is_differentiable, higher_is_better, full_state_update = False, True, False
    spans: list[Tensor]
    questions: list[Tensor]

    def __init__(self, score: Score, **common: Any) -> None:
        super().__init__(**common)
        if score not in get_args(Score):
            raise ValueError(f"score={score!r} is unknown: choose one of {', '.join(get_args(Score))}")
        self.score, self.key = score, AnswerKey()
        self.add_state("spans", default=[], dist_reduce_fx="cat")
        self.add_state("questions", default=[], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        self.spans.append(predictions)
        self.questions.append(targets)

    def compute(self) -> Tensor:
        answers = self.answers()
        predictions = [{"id": str(question), "prediction_text": text} for question, text in answers.items()]
        targets = [
            {"id": str(question), "answers": {"text": self.key.answers[question] or [""]}} for question in answers
        ]
        return squad(predictions, targets)[self.score].to(self.device) / 100  # type: ignore[arg-type]

    def answers(self) -> dict[int, str]:
        """Return question → its answer."""
        best: dict[int, tuple[float, int, int]] = {}
        nulls: dict[int, float] = {}
        spans, questions = dim_zero_cat(self.spans).tolist(), dim_zero_cat(self.questions).tolist()
        for question, (score, null, start, end) in zip(questions, spans, strict=True):
            # the earliest of equal scores, independent of the order of the ranks
            found = (score, -int(start), -int(end))
            best[question] = max(best.get(question, found), found)
            nulls[question] = min(nulls.get(question, null), null)
        return {
            question: "" if nulls[question] > score else self.key.contexts[question][-start:-end]
            for question, (score, start, end) in sorted(best.items())
        }


def best_spans(start: Tensor, end: Tensor, offsets: Tensor, n_best: int, max_length: int) -> tuple[Tensor, Tensor]:
    """Find the best answer of each feature: max of start_i + end_j over i ≤ j < i + max_length inside the context.

    i and j are among the `n_best` highest logits of the context's tokens, as in SQuAD's common evaluation scripts.

    Args:
        start, end: logits (B, N).
        offsets: (B, N, 2), each token's first character and the one after its last, −1 outside of the context.
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
