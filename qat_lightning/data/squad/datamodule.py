"""Question answering: the answer is a span of the context. SQuAD 1.1 (arXiv:1606.05250) and 2.0 (arXiv:1806.03822)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qat_lightning.data.base import Row, TaskData, check_sizes
from qat_lightning.data.dataset_files import read_split
from qat_lightning.data.samplers import permutation
from qat_lightning.data.squad.examples import COLUMNS, Question, has_words, read_questions
from qat_lightning.data.squad.features import encode
from qat_lightning.data.squad.metric import AnswerKey, AnswerScore, best_spans
from qat_lightning.data.tokenizers import TokenizedData, pad_rows


class SquadData(TokenizedData):
    """Questions on a context, whose columns are context, question and answers.

    A row is a *feature*: the question and a part of its context; the parts of a long context overlap. A batch has
    input_ids, attention_mask (and token_type_ids if the tokenizer makes them), (B, N); "labels" (B, 2), first and last
    token of the first accepted answer, 0 and 0 ([CLS]) if the feature does not contain all of it; "question" (B,), a number
    of the split, and "offsets" (B, N, 2), each token's characters in the context, −1 for tokens outside of it.
    `train_limit` and `validation_limit` count questions, not features.

    Args:
        max_length: number of tokens of a feature.
        stride: number of tokens of the overlap of two features.
        max_question_length: number of tokens; longer questions are cut.
        n_best: number of highest starts, and of ends, for the choice of an answer.
        max_answer_length: number of tokens of an answer.
        unanswerable: questions without an answer are allowed, and the model may answer "" (SQuAD 2.0).
        null_threshold: the answer is "" if its score is this much higher than the best span's.
        common: the arguments of `TokenizedData` and `TaskData`.

    Raises:
        ValueError: an argument out of range; when read, the errors of `read_questions` and `read_tokenizer`, or no room for
            the context.
    """

    head = "question_answering"

    def __init__(
        self,
        *,
        max_length: int = 384,
        stride: int = 128,
        max_question_length: int = 64,
        n_best: int = 20,
        max_answer_length: int = 30,
        unanswerable: bool = False,
        null_threshold: float = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(num_labels=2, max_length=max_length, **common)  # a start and an end
        check_sizes(max_question_length=max_question_length, n_best=n_best, max_answer_length=max_answer_length)
        self.stride, self.max_question_length = stride, max_question_length
        self.n_best, self.max_answer_length = n_best, max_answer_length
        self.unanswerable, self.null_threshold = unanswerable, null_threshold
        # `load` would apply the limits to features
        self.question_limits = {"train": self.train_limit, "validation": self.validation_limit}
        self.train_limit = self.validation_limit = None
        self.key = AnswerKey()
        for metric in self.metrics.values():
            if isinstance(metric, AnswerScore):
                metric.key = self.key

    def read(self) -> tuple[Sequence[Row], Sequence[Row]]:
        self.read_tokenizer()
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"tokenizer={self.tokenizer_path!r} is a {type(self.tokenizer).__name__} without offsets, which question"
                " answering needs: set tokenizer=FOLDER to a tokenizer with a tokenizer.json"
            )
        self.notes = []
        train, validation = self._questions("train"), self._questions("validation")
        self.key.contexts = [question.context for question in validation]
        # SQuAD 2.0 accepts only answers with words, else "" would be right as well
        self.key.answers = [
            [answer for answer in question.answers if has_words(answer) or not self.unanswerable]
            for question in validation
        ]
        lengths = (self.max_length, self.stride, self.max_question_length)
        return encode(train, self.tokenizer, *lengths), encode(validation, self.tokenizer, *lengths)

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        length = self.max_length if self.padding == "max_length" else 0
        fills = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 0, "offsets": -1}
        fills |= {"token_type_ids": self.tokenizer.pad_token_type_id} if "token_type_ids" in rows[0] else {}
        batch = {name: pad_rows([row[name] for row in rows], fill, length) for name, fill in fills.items()}
        return batch | {name: torch.tensor([row[name] for row in rows]) for name in ("labels", "question")}

    def predict(self, logits: Sequence[Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the inputs of `AnswerScore`: (score, score of no answer, first character, one after the last) (B, 4), questions.

        Args:
            logits: logits of starts and ends, (B, N) each. No answer scores start_0 + end_0 − null_threshold, −∞ where every
                question has one.
        """
        start, end = logits
        best, characters = best_spans(start, end, batch["offsets"], self.n_best, self.max_answer_length)
        null = start[:, 0] + end[:, 0] - self.null_threshold if self.unanswerable else torch.full_like(best, -torch.inf)
        return torch.stack([best, null, *characters.to(best.dtype).unbind(1)], 1), batch["question"]

    def fingerprint(self) -> str:
        """Hash the rows, the texts, the choice of an answer and the padding."""
        answer = (self.n_best, self.max_answer_length, self.unanswerable, self.null_threshold)
        chosen = (self.padding, self.max_length, *answer)
        text = json.dumps([TaskData.fingerprint(self), chosen, self.key.contexts, self.key.answers])
        return hashlib.sha256(text.encode()).hexdigest()

    def _questions(self, name: str) -> list[Question]:
        """Return the questions of one split up to its limit: the first, or for training those of a fixed permutation."""
        split, limit = read_split(self.path, self.name, self.splits[name], COLUMNS), self.question_limits[name]
        questions, notes = read_questions(split, name, self.unanswerable)
        self.notes += notes
        count = self.limited(limit, len(questions))
        chosen = permutation(len(questions), 0, 0) if name == "train" and count < len(questions) else range(count)
        return [questions[number] for number in chosen[:count]]
