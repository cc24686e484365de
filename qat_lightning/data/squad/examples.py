"""Read questions on a text from SQuAD's columns; a row that cannot be used is refused by its number."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from qat_lightning.data.file_formats import Column

NAMES = ("context", "question", "answers")
COLUMNS = [
    Column(
        name,
        f"questions need the columns {', '.join(NAMES)}, as in rajpurkar/squad; set another path=…",
        text=name != "answers",
    )
    for name in NAMES
]
"""The columns that are read; the hub's sets have `id` and `title` as well."""


@dataclass(frozen=True)
class Question:
    """A question, its context, and the accepted answers with their first characters; [] if unanswerable."""

    context: str
    text: str
    answers: list[str]
    starts: list[int]

    @property
    def span(self) -> tuple[int, int] | None:
        """First character and one after the last of the first answer without white space around it; None without answer."""
        if not self.answers:
            return None
        answer, start = self.answers[0], self.starts[0]
        start += len(answer) - len(answer.lstrip())
        return start, start + len(answer.strip())


def read_questions(split: Dataset, name: str, unanswerable: bool) -> tuple[list[Question], list[str]]:
    """Return the question of each row of the split called `name`, and a note about rows with a misplaced answer.

    Args:
        unanswerable: questions without an answer are allowed.

    Raises:
        ValueError: a cell that is not text, answers of another form, no answer, or misplaced answers only.
    """
    columns = [split[column][:] for column in NAMES]
    questions: list[Question] = []
    misplaced: list[str] = []
    for row, (context, text, answers) in enumerate(zip(*columns, strict=True)):
        where = f"row {row} of the {name} split"
        for column, value in (("context", context), ("question", text)):
            if not isinstance(value, str):
                raise ValueError(f"{where} has {column}={value!r}, which is not text: repair it, or set another path=…")
        texts, starts = _answers(answers, where)
        if not texts and not unanswerable:
            raise ValueError(
                f"{where} has no answer: set unanswerable=true for a set with unanswerable questions (data=squad_v2)"
            )
        for answer, start in zip(texts, starts, strict=True):
            if start < 0 or not context.startswith(answer, start):
                misplaced.append(
                    f"{where} has the answer {answer!r}, but its context has {context[max(start, 0) :][: len(answer)]!r} at"
                    f" answer_start={start}: repair the row (answer_start counts characters from 0)"
                )
                break
        else:
            questions.append(Question(context, text, texts, starts))
    if misplaced and not questions:
        raise ValueError(misplaced[0])
    note = f"{len(misplaced)} of {len(split)} rows of the {name} split have a misplaced answer and are left out: "
    return questions, [note + misplaced[0]] if misplaced else []


def has_words(answer: str) -> bool:
    """Return False for punctuation and articles only, which SQuAD 2.0's official script does not accept.

    >>> has_words("The tower"), has_words("the.")
    (True, False)
    """
    bare = "".join(character for character in answer.lower() if character not in string.punctuation)
    return not {"a", "an", "the"}.issuperset(bare.split())


def _answers(answers: Any, where: str) -> tuple[list[str], list[int]]:
    """Return texts and first characters of {"text": […], "answer_start": […]}, or of a list of {"text", "answer_start"}."""
    given = answers if isinstance(answers, Mapping) else {}
    if isinstance(answers, list) and all(isinstance(answer, Mapping) for answer in answers):  # as SQuAD's own files
        given = {key: [answer.get(key) for answer in answers] for key in ("text", "answer_start")}
    texts, starts = given.get("text"), given.get("answer_start")
    if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
        written = all(isinstance(text, str) and text.strip() for text in texts)
        if written and all(isinstance(start, int) for start in starts):
            return texts, starts
    raise ValueError(
        f"{where} has answers={answers!r}, not {{'text': [texts], 'answer_start': [first characters]}} with lists of one length"
        " (both empty for an unanswerable question)"
    )
