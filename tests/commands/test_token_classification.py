"""A whole run on named entities: teacher, student, exports, `evaluate` and `predict`."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from qat_lightning.commands.evaluate import evaluate
from qat_lightning.commands.predict import predict
from qat_lightning.commands.train.run import run
from qat_lightning.config.run_config import read_run
from qat_lightning.data.token_classification.metric import EntityScore
from qat_lightning.io.documents import read_json
from tests.training.runs import save_tokenizer, text_config

FIRST, LAST, PLACES, OTHERS = ("Ann", "Bob", "Eve"), ("Moss", "Hill"), ("Rome", "Oslo"), ("in", "met", "saw", "left")
TAGS = ["O", "B-PER", "I-PER", "B-LOC"]


def sentence(drawn: random.Random) -> tuple[list[str], list[str]]:
    """Draw words and tags: persons of two words, places of one."""
    words, tags = [], []
    for _ in range(3):
        kind = drawn.choice(["person", "place", "other"])
        if kind == "person":
            words += [drawn.choice(FIRST), drawn.choice(LAST)]
            tags += ["B-PER", "I-PER"]
        elif kind == "place":
            words += ["in", drawn.choice(PLACES)]
            tags += ["O", "B-LOC"]
        else:
            words += [drawn.choice(OTHERS)]
            tags += ["O"]
    return words, tags


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and the words of its validation rows."""
    folder, drawn = tmp_path_factory.mktemp("names"), random.Random(0)
    save_tokenizer(folder / "tokenizer", *(word.lower() for word in (*FIRST, *LAST, *PLACES, *OTHERS)))
    rows = [sentence(drawn) for _ in range(120)]
    for split, chosen in (("train", rows), ("validation", rows[:40])):
        pairs = ("\n".join(f"{word} {tag}" for word, tag in zip(*row, strict=True)) for row in chosen)
        (folder / f"{split}.txt").write_text("-DOCSTART- O\n\n" + "\n\n".join(pairs) + "\n")
    (folder / "bare.jsonl").write_text("\n".join(json.dumps({"tokens": words}) for words, _ in rows[:40]))
    words = ("data.num_labels=4", f"data.label_names=[{','.join(TAGS)}]", "data.batch_size=8", "export.onnx=true",
             "optimizer.lr=5e-3", "stages.teacher.max_steps=80", "stages.train.max_steps=60")  # fmt: skip
    run(text_config(folder, *words, data="token_classification"), folder / "run", [])
    return folder


def test_the_student_learns_the_entities(names: Path) -> None:
    results = read_json(names / "run" / "metrics.json")
    assert min(results["teacher"], results["student"]) > 0.9
    answers = results["answers"]
    assert answers["classes"] == TAGS
    assert answers["models"]["teacher"]["agreement"] == 1
    assert sum(answers["rows"]) == len((names / "bare.jsonl").read_text().split('", "')) + 39


@pytest.mark.parametrize("model", ["student", "packed", "onnx"])
def test_predictions_are_those_that_evaluate_scores(model: str, names: Path, tmp_path: Path) -> None:
    config = read_run(names / "run")
    scores = evaluate(config, names / "run", model)["scores"]
    predict(config, names / "run", model, names / "bare.jsonl", tmp_path / "out.jsonl")
    metric, drawn = EntityScore(), random.Random(0)
    metric.names = TAGS
    for line in (tmp_path / "out.jsonl").read_text().splitlines():
        words, tags = sentence(drawn)
        row = json.loads(line)
        assert row["tokens"] == words
        metric.update(*(torch.tensor([[TAGS.index(tag) for tag in each]]) for each in (row["prediction"], tags)))
    assert float(metric.compute()) == pytest.approx(scores["f1"])


def test_words_of_a_conll_file_are_tagged_and_those_beyond_the_length_are_not(names: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("\n".join(["Ann"] * 20) + "\n\nBob\nHill\n")
    predict(read_run(names / "run"), names / "run", "packed", tmp_path / "in.txt", tmp_path / "out.jsonl")
    long, short = (json.loads(line)["prediction"] for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert [tag is None for tag in long] == [False] * 14 + [True] * 6
    assert (len(short), set(short) <= set(TAGS)) == (2, True)
    predict(read_run(names / "run"), names / "run", "packed", tmp_path / "in.txt", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().splitlines()[-1] == f'"Bob Hill","{" ".join(short)}"'
