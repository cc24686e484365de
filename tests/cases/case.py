"""Define a case (an input, how it is read, the right value), and write inputs: rows, a tokenizer of characters, images."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from qat_lightning.config.builders.models import load_data
from qat_lightning.config.schema import Plain
from qat_lightning.data.base import TaskData
from tests.training import runs

CHARACTERS = [*string.ascii_lowercase, *string.digits, *string.punctuation]
VOCABULARY = len(runs.SPECIAL) + 2 * len(CHARACTERS)
COLORS = {"cat": (255, 0, 0), "dog": (0, 255, 0), "owl": (0, 0, 255)}


@dataclass(frozen=True)
class Case:
    """`make` writes the input into an empty folder; what `read` returns of the folder is `value`, or it is `refused`.

    Args:
        refused: the message, as a pattern.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    value: Any = None
    refused: str = ""


def composed(folder: Path, *words: str) -> Plain:
    """Return the configuration of a command on the data in `folder`, checked."""
    given = (f"data.path={folder}", "trainer.accelerator=cpu", "threads=1")
    return runs.composed(*given, *words, small=())


def loaded(folder: Path, *words: str) -> TaskData:
    """Return the data of a command, read."""
    return load_data(composed(folder, *words))


def write_tokenizer(folder: Path) -> None:
    """Write a BERT tokenizer that knows every character, so that what it reads can be decoded."""
    tokens = [*CHARACTERS, *(f"##{character}" for character in CHARACTERS)]
    runs.save_tokenizer(folder, *tokens)


def write_rows(folder: Path, suffix: str, train: str, validation: str | None = None) -> None:
    """Write both splits as text files; validation is as train unless given."""
    (folder / f"train.{suffix}").write_text(train, encoding="utf-8")
    (folder / f"validation.{suffix}").write_text(train if validation is None else validation, encoding="utf-8")


def lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def sentences(count: int, **more: Any) -> list[dict[str, Any]]:
    """Return rows of a text and a class, 0 and 1 in turns."""
    return [{"sentence": f"film {number}", "label": number % 2, **more} for number in range(count)]


def question(number: int, start: int | None = None) -> dict[str, Any]:
    """Return a row in SQuAD's columns; its answer is the fifth word of the context, unless `start` says otherwise."""
    context = f"tower {number} is in paris now"
    place = context.index("paris") if start is None else start
    return {"context": context, "question": "where", "answers": {"text": ["paris"], "answer_start": [place]}}


def write_images(folder: Path, *names: str) -> None:
    """Write an image of eight pixels a side for each name, in the color of its class: train/cat/0.png."""
    for name in names:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), COLORS[Path(name).parts[1]]).save(place)
