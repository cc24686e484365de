"""Write the inputs of the cases: files of a few rows, tokenizers of single characters, small images."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import BertTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CHARACTERS = [*string.ascii_lowercase, *string.digits, *string.punctuation]
VOCABULARY = len(SPECIAL) + 2 * len(CHARACTERS)
COLORS = {"cat": (255, 0, 0), "dog": (0, 255, 0), "owl": (0, 0, 255)}


def write_tokenizer(folder: Path) -> None:
    """Write a BERT tokenizer that knows every character, so that what it reads can be decoded."""
    tokens = [*SPECIAL, *CHARACTERS, *(f"##{character}" for character in CHARACTERS)]
    BertTokenizerFast(vocab={token: number for number, token in enumerate(tokens)}).save_pretrained(folder)


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
