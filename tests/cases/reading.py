"""Cases of files: which rows are read, or which message is given instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset

from qat_lightning.data.base import TaskData
from tests.cases.case import Case, lines, loaded, question, sentences, write_images, write_rows, write_tokenizer

Read = Callable[[Path], TaskData]


def tokenized(*words: str) -> Read:
    """Return what reads a folder of texts, with the tokenizer in it, or else one of single characters."""

    def read(folder: Path) -> TaskData:
        if not (folder / "tokenizer").exists():
            write_tokenizer(folder / "tokenizer")
        return loaded(folder, "model=tiny", *words, f"data.tokenizer={folder / 'tokenizer'}")

    return read


TEXT = tokenized("data=text", "data.text_columns=[sentence]", "data.num_labels=2")
PAIRS = tokenized("data=text", "data.text_columns=[sentence,hypothesis]", "data.num_labels=2")
SQUAD = tokenized("data=squad", "data.max_question_length=8", "data.stride=2", "data.max_length=48")


def images(folder: Path) -> TaskData:
    return loaded(folder, "model=tiny_vit", "data=images", "data.num_labels=2")


def texts(read: Read) -> Callable[[Path], list[str]]:
    """Return what gives the texts of the training rows, as their tokens spell them, without the spaces between."""

    def spelled(folder: Path) -> list[str]:
        data = read(folder)
        decoded = [data.processor.decode(row["input_ids"], skip_special_tokens=True) for row in data.train_rows]
        return [text.replace(" ", "") for text in decoded]

    return spelled


def sizes(read: Read) -> Callable[[Path], tuple[int, int]]:
    """Return what counts the rows of both splits."""

    def counted(folder: Path) -> tuple[int, int]:
        data = read(folder)
        return len(data.train_rows), len(data.validation_rows)

    return counted


def answers(folder: Path) -> list[str]:
    """Return the texts of the training rows' answers."""
    data = SQUAD(folder)
    batch = data.collate(data.train_rows)
    rows = zip(batch["input_ids"], batch["labels"].tolist(), strict=True)
    return [data.processor.decode(row[start : end + 1]).replace(" ", "") for row, (start, end) in rows]


def characters(folder: Path) -> int:
    """Return how many tokens of a language model's training texts are predicted."""
    rows = tokenized("data=language", "data.max_length=64")(folder).train_rows
    return sum(len(row["labels"]) for row in rows)


def rows(suffix: str, train: str, validation: str | None = None) -> Callable[[Path], None]:
    return lambda folder: write_rows(folder, suffix, train, validation)


def shards(folder: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        Dataset.from_list(sentences(4)).to_parquet(folder / f"{name}.parquet")


def slow_tokenizer(folder: Path) -> None:
    write_rows(folder, "jsonl", lines([question(1), question(2)]))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer", "extra_ids": 0}')


def hidden_image(hidden: str) -> Callable[[Path], None]:
    names = [f"{split}/{name}" for split in ("train", "validation") for name in ("cat/0.png", "dog/0.png", hidden)]
    return lambda folder: write_images(folder, *names)


def nested(questions: int) -> str:
    """Return a file as SQuAD's own are, with an article of so many paragraphs."""
    paragraphs = []
    for row in map(question, range(questions)):
        answer = {"text": row["answers"]["text"][0], "answer_start": row["answers"]["answer_start"][0]}
        paragraphs.append({"context": row["context"], "qas": [{"id": "0", "question": "where", "answers": [answer]}]})
    return json.dumps({"version": "1.1", "data": [{"title": "towers", "paragraphs": paragraphs}]})


FILES = {
    "c01 a cell longer than a block": Case(
        rows("csv", f"text\na tale\nonce {2_000_000 * 'x'} end\n", "text\na tale\n"),
        characters,
        5 + 4 + 1 + 3 - 1,  # a token for each letter, one for a word that is too long; the first is not predicted
    ),
    "c03 keys that the first row lacks": Case(
        rows("jsonl", lines([*sentences(1), *sentences(3, hypothesis="good")])),
        texts(PAIRS),
        ["film0", "film0good", "film1good", "film2good"],
    ),
    "c04 a large number that is not read": Case(
        rows("jsonl", lines(sentences(6, id=2**64))), sizes(TEXT), (6, 6)
    ),
    "c06 several files of a split": Case(shards, sizes(TEXT), (8, 4)),
    "c15 a tokenizer without offsets": Case(
        slow_tokenizer, SQUAD, refused=r"data\.tokenizer='.*' is a ByT5Tokenizer without .*: set data\.tokenizer=FOLDER"
    ),
    "c21 hidden folders": Case(hidden_image("cat/.ipynb_checkpoints/0.png"), sizes(images), (2, 2)),
    "c21b hidden files": Case(hidden_image("cat/._0.png"), sizes(images), (2, 2)),
    "c31 an answer one character off": Case(
        rows("jsonl", lines([question(1), question(2, start=12), question(3)])), answers, ["paris", "paris"]
    ),
    "c37 quote marks of pandas": Case(
        rows("tsv", 'sentence\tlabel\n"he ""ran"""\t0\na dog\t1\n'), texts(TEXT), ['he"ran"', "adog"]
    ),
    "c47 nested questions": Case(rows("json", nested(3)), answers, ["paris"] * 3),
    "c51 digits as text": Case(rows("csv", "sentence,label\n00042,0\n7,1\n"), texts(TEXT), ["00042", "7"]),
}  # fmt: skip
