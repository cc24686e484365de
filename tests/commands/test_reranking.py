"""A whole run on queries and passages: scores, `predict`, and a teacher whose scores are distilled without labels."""

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
from qat_lightning.config.schema import ConfigError
from qat_lightning.data.reranking import RankingScore
from tests.training.runs import save_tokenizer, saved_tiny, text_config

QUERIES, WORDS = ("cat", "dog", "film", "bird"), ("good", "bad", "long", "red", "old")
SHORT = ("stages.teacher.max_steps=40", "stages.train.max_steps=30", "optimizer.lr=5e-3", "data.batch_size=8")


@pytest.fixture(scope="module")
def passages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on passages, of which those with the word "good" are relevant."""
    folder, drawn = tmp_path_factory.mktemp("passages"), random.Random(0)
    save_tokenizer(folder / "tokenizer", *QUERIES, *WORDS)
    rows = []
    for group in range(24):
        for number in range(5):
            words = [*drawn.sample(WORDS[1:], 2), *(["good"] if number == group % 5 else [])]
            text = " ".join(drawn.sample(words, len(words)))
            rows.append(
                {"query": QUERIES[group % 4], "passage": text, "id": f"q{group}", "label": int("good" in words)}
            )
    for name, chosen in (("train", rows), ("validation", rows[:50])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, chosen)))
    unlabelled = [{name: row[name] for name in ("query", "passage", "id")} for row in rows]
    (folder / "unlabelled.jsonl").write_text("\n".join(map(json.dumps, unlabelled)))
    run(text_config(folder, *SHORT, "data.group_column=id", data="reranking"), folder / "run", [])
    return folder


def test_the_student_ranks_and_predict_gives_its_scores(passages: Path, tmp_path: Path) -> None:
    scores = evaluate(read_run(passages / "run"), passages / "run", "packed")["scores"]
    assert min(scores.values()) > 0.9
    predict(
        read_run(passages / "run"), passages / "run", "packed", passages / "validation.jsonl", tmp_path / "out.jsonl"
    )
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    metric = RankingScore("mrr")
    targets = torch.tensor([[row["label"], int(row["id"][1:])] for row in rows])
    metric.update(torch.tensor([row["prediction"] for row in rows]), targets)
    assert float(metric.compute()) == pytest.approx(scores["mrr"])


def test_a_teacher_is_distilled_without_labels_and_not_trained_without_them(passages: Path, tmp_path: Path) -> None:
    words = (*SHORT, "data.group_column=id", "data.train_split=unlabelled", "data.train_labels=false", "losses=logits")
    with pytest.raises(ConfigError, match=r"stages.teacher.max_epochs=0"):
        run(text_config(passages, *words, data="reranking"), tmp_path / "refused", [])
    teacher = f"model.path={saved_tiny(tmp_path / 'teacher', num_labels=1)}"
    config = text_config(passages, *words, teacher, "stages.teacher.max_steps=0", data="reranking")
    assert run(config, tmp_path / "run", [])["status"] == "finished"
