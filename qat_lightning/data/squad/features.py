"""Split questions into features: the question and a part of its context; the parts of a long context overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qat_lightning.data.base import Row
from qat_lightning.data.squad.examples import Question
from qat_lightning.data.tokenizers import CHUNK

NOWHERE = (0, 0)
"""Labels of a feature without the complete answer: both at the first token ([CLS])."""


def token_span(offsets: Tensor, start: int, end: int) -> tuple[int, int]:
    """Return first and last token of the characters start…end−1 of the context; `NOWHERE` if one of them is missing."""
    context = offsets[offsets[:, 0] >= 0]
    if not len(context) or context[0, 0] > start or context[-1, 1] < end:
        return NOWHERE
    overlapping = ((offsets[:, 0] >= 0) & (offsets[:, 0] < end) & (offsets[:, 1] > start)).nonzero()
    return (int(overlapping[0]), int(overlapping[-1])) if len(overlapping) else NOWHERE


def encode(
    questions: Sequence[Question], tokenizer: Any, max_length: int, stride: int, max_question_length: int
) -> list[Row]:
    """Return all features in order: the tokenizer's inputs, "offsets" (N, 2), "labels" (2,) of `token_span`, "question".

    Raises:
        ValueError: features would overlap completely, which would abort the tokenizers library.
    """
    room = max(max_length - max_question_length - tokenizer.num_special_tokens_to_add(pair=True), 0)
    if not 0 <= stride < room:
        raise ValueError(
            f"stride={stride} must be 0 or more and less than the {room} tokens that max_length={max_length} leaves for the"
            f" context beside a question of max_question_length={max_question_length}: set a longer max_length=…, or a shorter"
            " stride=… or max_question_length=…"
        )
    rows: list[Row] = []
    for start in range(0, len(questions), CHUNK):
        chunk = questions[start : start + CHUNK]
        encoded = tokenizer(
            [_cut(question.text, tokenizer, max_question_length) for question in chunk],
            [question.context for question in chunk],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_attention_mask=True,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for feature, number in enumerate(encoded["overflow_to_sample_mapping"]):
            rows.append(_row(encoded, feature, chunk[number].span) | {"question": start + number})
    return rows


def _cut(question: str, tokenizer: Any, length: int) -> str:
    """Return the question's first `length` tokens as text."""
    while True:
        offsets = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if len(offsets) <= length:
            return question
        # at least one character less: the bytes of one character may be several tokens
        question = question[: min(offsets[length - 1][1], len(question) - 1)]


def _row(encoded: Any, feature: int, span: tuple[int, int] | None) -> dict[str, Any]:
    """Return the tensors of one feature; int32 halves the memory of a large set."""
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoded]
    offsets = torch.tensor(encoded["offset_mapping"][feature], dtype=torch.int32)
    offsets[torch.tensor([part != 1 for part in encoded.sequence_ids(feature)])] = -1
    labels = NOWHERE if span is None else token_span(offsets, *span)
    inputs = {name: torch.tensor(encoded[name][feature], dtype=torch.int32) for name in names}
    return inputs | {"offsets": offsets, "labels": list(labels)}
