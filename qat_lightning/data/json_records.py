"""Read the rows of a JSON text: a list of objects, one object after the other, or SQuAD's own nested form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

SPACE = re.compile(r"\s*")


def read_records(text: str) -> list[dict[str, Any]]:
    """Return the rows of a JSON list, of {"data": list}, or of one object after the other (JSON Lines).

    Raises:
        ValueError: not JSON, or a row that is not an object.

    >>> read_records('{"text": "a cat"}\\n{"text": "a dog"}\\n')
    [{'text': 'a cat'}, {'text': 'a dog'}]
    """
    rows = list(_values(text))
    if len(rows) == 1:
        rows = _list_of(rows[0]) or rows
    if wrong := [row for row in rows if not isinstance(row, dict)]:
        raise ValueError(f"{wrong[0]!r} is not an object with a value for each column")
    return _questions(rows) if rows and "paragraphs" in rows[0] else rows


def _values(text: str) -> Iterator[Any]:
    decoder, position = json.JSONDecoder(), _after_space(text, 0)
    while position < len(text):
        value, position = decoder.raw_decode(text, position)
        yield value
        position = _after_space(text, position)


def _after_space(text: str, position: int) -> int:
    found = SPACE.match(text, position)
    return found.end() if found else position


def _list_of(value: Any) -> list[Any] | None:
    """Return the rows that a single value holds, or None where it is a row itself."""
    if isinstance(value, list):
        return value
    inner = value.get("data") if isinstance(value, dict) else None
    return inner if isinstance(inner, list) and all(isinstance(row, dict) for row in inner) else None


def _questions(articles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each question of SQuAD's articles (arXiv:1606.05250): its own keys, and its paragraph's context."""
    try:
        return [
            {"context": paragraph["context"], **question}
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"an article of SQuAD's nested form has paragraphs, each with context and qas; here {error} fails"
        ) from None
