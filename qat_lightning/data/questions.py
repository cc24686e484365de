"""Questions on a text, in SQuAD's columns; what cannot be trained or scored with is refused with its row."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from qat_lightning.data.files import require_column

COLUMNS = ("context", "question", "answers")
"""Those that are read; the hub's sets hold `id` and `title` as well."""


@dataclass(frozen=True)
class Question:
    """A question, the text that it is about, and the accepted answers with their first characters; none: unanswerable."""

    context: str
    text: str
    answers: list[str]
    starts: list[int]

    @property
    def span(self) -> tuple[int, int] | None:
        """First character and one after the last of the first answer, less white space around it; None for none."""
        if not self.answers:
            return None
        answer, start = self.answers[0], self.starts[0]
        start += len(answer) - len(answer.lstrip())
        return start, start + len(answer.strip())


def read_questions(split: Dataset, name: str, path: str, unanswerable: bool) -> list[Question]:
    """Every row of the split called `name`.

    Args:
        path: of the data, for the messages.
        unanswerable: a question may have no answer.

    Raises:
        ValueError: a missing column, no text, an answer that does not stand where the row says, or none at all.
    """
    remedy = (
        f"questions need the columns {', '.join(COLUMNS)}, as rajpurkar/squad has them; give data.path another data set"
    )
    for column in COLUMNS:
        require_column(split, name, path, column, remedy)
    columns = [split[column][:] for column in COLUMNS]
    questions = [
        _question(context, text, answers, f"row {row} of the {name} split")
        for row, (context, text, answers) in enumerate(zip(*columns, strict=True))
    ]
    empty = next((row for row, question in enumerate(questions) if not question.answers), None)
    if empty is not None and not unanswerable:
        raise ValueError(
            f"row {empty} of the {name} split has no answer: choose data=squad_v2 (data.unanswerable=true) for a set with"
            " unanswerable questions"
        )
    return questions


def has_words(answer: str) -> bool:
    """False for punctuation and articles alone: SQuAD 2.0's official script does not accept such an answer."""
    bare = "".join(character for character in answer.lower() if character not in string.punctuation)
    return not {"a", "an", "the"}.issuperset(bare.split())


def _question(context: Any, text: Any, answers: Any, where: str) -> Question:
    for column, value in (("context", context), ("question", text)):
        if not isinstance(value, str):
            raise ValueError(
                f"{where} has {value!r} for a {column}, which is no text: repair it, or give data.path another"
            )
    texts, starts = _answers(answers, where)
    for answer, start in zip(texts, starts, strict=True):
        if start < 0 or not context.startswith(answer, start):
            raise ValueError(
                f"{where} has the answer {answer!r}, but its context reads {context[max(start, 0) :][: len(answer)]!r} at"
                f" answer_start={start}: repair the row (answer_start counts characters from 0)"
            )
    return Question(context, text, texts, starts)


def _answers(answers: Any, where: str) -> tuple[list[str], list[int]]:
    """Texts and first characters of {"text": […], "answer_start": […]}."""
    given = answers if isinstance(answers, Mapping) else {}
    texts, starts = given.get("text"), given.get("answer_start")
    if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
        written = all(isinstance(text, str) and text.strip() for text in texts)
        if written and all(isinstance(start, int) for start in starts):
            return texts, starts
    raise ValueError(
        f"{where} has answers={answers!r}: give it {{'text': [texts], 'answer_start': [first characters]}}, as many of the"
        " one as of the other, both empty for an unanswerable question"
    )
