"""Question answering: the answer is a span of the context. SQuAD 1.1 (arXiv:1606.05250) and 2.0 (arXiv:1806.03822)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from qat_lightning.data.base import Row, TaskData, check_sizes
from qat_lightning.data.dataset_files import read_split
from qat_lightning.data.padding_stats import check_padding
from qat_lightning.data.samplers import permutation
from qat_lightning.data.squad.examples import COLUMNS, Question, has_words, read_questions
from qat_lightning.data.squad.features import Lengths, check_room, encode
from qat_lightning.data.squad.metric import AnswerKey, AnswerScore
from qat_lightning.data.squad.spans import best_spans
from qat_lightning.data.tokenizers import padded, read_tokenizer


class SquadData(TaskData):
    """A row is a *feature*: the question and as much of its context as fits; a long context makes several that overlap.

    A batch holds input_ids, attention_mask (and token_type_ids where the tokenizer makes them), (B, N); "labels" (B, 2),
    first and last token of the first accepted answer, 0 and 0 ([CLS]) where the feature does not hold all of it;
    "question" (B,), a number of the split, and "offsets" (B, N, 2), each token's characters in the context, −1 for
    tokens that are not of it.

    `train_limit` and `validation_limit` count questions, not features: a question is scored with all of its context.

    Args:
        path: hub id such as rajpurkar/squad, or a folder; the columns are context, question and answers.
        name: configuration on the hub; None for none.
        tokenizer: hub id or folder; None is refused when read.
        tokenizer_revision: branch, tag or commit on the hub; None for its default.
        max_length: tokens of a feature.
        stride: tokens of the context that two neighbouring features share.
        max_question_length: tokens; longer questions are cut.
        n_best: highest starts, and ends, that an answer is chosen from.
        max_answer_length: tokens.
        unanswerable: a question may have no answer, and the model may give none (SQuAD 2.0).
        null_threshold: "" is the answer where its score is so much above the best span's.
        padding: "longest" of the batch, or "max_length" for all as the papers' code does.

    Raises:
        ValueError: when read, in words: what `read_questions` and `read_tokenizer` refuse, or no room for the context.
    """

    head = "question_answering"

    def __init__(
        self,
        *,
        path: str,
        tokenizer: str | None,
        tokenizer_revision: str | None = None,
        name: str | None = None,
        train_split: str = "train",
        validation_split: str = "validation",
        max_length: int = 384,
        stride: int = 128,
        max_question_length: int = 64,
        n_best: int = 20,
        max_answer_length: int = 30,
        unanswerable: bool = False,
        null_threshold: float = 0.0,
        padding: Literal["longest", "max_length"] = "longest",
        **common: Any,
    ) -> None:
        super().__init__(num_labels=2, **common)  # a start and an end
        check_padding(padding, self.group_by_length)
        check_sizes(max_question_length=max_question_length, n_best=n_best, max_answer_length=max_answer_length)
        check_sizes(max_length=max_length, stride=stride)
        self.path, self.name, self.task = path, name, name or Path(path).name
        self.splits = {"train": train_split, "validation": validation_split}
        self.tokenizer_path, self.max_length, self.padding = tokenizer, max_length, padding
        self.tokenizer_revision = tokenizer_revision
        self.lengths = Lengths(max_length, stride, max_question_length)
        self.n_best, self.max_answer_length = n_best, max_answer_length
        self.unanswerable, self.null_threshold = unanswerable, null_threshold
        # counted here in questions, so that `load`, which counts rows, must not cut again
        self.question_limits = {"train": self.train_limit, "validation": self.validation_limit}
        self.train_limit = self.validation_limit = None
        self.tokenizer: Any = None
        self.key = AnswerKey()
        for metric in self.metrics.values():
            if isinstance(metric, AnswerScore):
                metric.key = self.key

    def read(self) -> tuple[Sequence[Row], Sequence[Row]]:
        self.tokenizer = read_tokenizer(self.tokenizer_path, self.max_length, revision=self.tokenizer_revision)
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"data.tokenizer={self.tokenizer_path!r} is a {type(self.tokenizer).__name__} without the places of its tokens"
                " in the text, which question answering needs: give data.tokenizer=FOLDER one that holds a tokenizer.json"
            )
        check_room(self.tokenizer, self.lengths)
        self.notes = []
        train, validation = self._questions("train"), self._questions("validation")
        self.key.contexts = [question.context for question in validation]
        self.key.answers = [self._accepted(question) for question in validation]
        return encode(train, self.tokenizer, self.lengths), encode(validation, self.tokenizer, self.lengths)

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        length = self.max_length if self.padding == "max_length" else 0
        fills = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 0, "offsets": -1}
        fills |= {"token_type_ids": self.tokenizer.pad_token_type_id} if "token_type_ids" in rows[0] else {}
        batch = {name: padded([row[name] for row in rows], fill, length) for name, fill in fills.items()}
        return batch | {name: torch.tensor([row[name] for row in rows]) for name in ("labels", "question")}

    def predict(self, logits: Sequence[Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What `AnswerScore` is fed: (score, score of no answer, first character, one after the last) (B, 4), questions (B,).

        Args:
            logits: of starts and ends, (B, N) each. No answer scores start_0 + end_0 − null_threshold, −∞ where every
                question has one.
        """
        start, end = logits
        best, characters = best_spans(start, end, batch["offsets"], self.n_best, self.max_answer_length)
        null = start[:, 0] + end[:, 0] - self.null_threshold if self.unanswerable else torch.full_like(best, -torch.inf)
        return torch.stack([best, null, *characters.to(best.dtype).unbind(1)], 1), batch["question"]

    def tokens(self, batch: Mapping[str, Tensor]) -> list[str]:
        return self.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())

    def fingerprint(self) -> str:
        """Also of what the score depends on: the texts, how an answer is chosen, the padding."""
        chosen = (
            self.padding,
            self.max_length,
            self.n_best,
            self.max_answer_length,
            self.unanswerable,
            self.null_threshold,
        )
        text = json.dumps([super().fingerprint(), chosen, self.key.contexts, self.key.answers])
        return hashlib.sha256(text.encode()).hexdigest()

    def _accepted(self, question: Question) -> list[str]:
        """The answers that count; in SQuAD 2.0 only those with words, else silence would be right as well."""
        return [answer for answer in question.answers if has_words(answer) or not self.unanswerable]

    def _questions(self, name: str) -> list[Question]:
        """Of one split, as many as its limit says: the first, for training those of a fixed permutation."""
        split, limit = read_split(self.path, self.name, self.splits[name], COLUMNS), self.question_limits[name]
        questions, notes = read_questions(split, name, self.unanswerable)
        self.notes += notes
        count = self.limited(limit, len(questions))
        chosen = permutation(len(questions), 0, 0) if name == "train" and count < len(questions) else range(count)
        return [questions[number] for number in chosen[:count]]
