"""Cases of whole runs: scores that are undefined, and an evaluation where there is no train file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qat_lightning.commands.evaluate import evaluate
from qat_lightning.commands.train.run import run
from qat_lightning.config.run_config import read_run
from tests.cases.case import VOCABULARY, Case, composed, lines, sentences, write_rows, write_tokenizer

SHORT = (
    "model=tiny", f"model.architecture.vocab_size={VOCABULARY}", "data.text_columns=[sentence]", "data.max_length=32",
    "data.batch_size=4", "stages.teacher.max_steps=1", "stages.train.max_steps=2", "intervention=none",
    "intervention_schedule=none",
    "losses=logits", "export.onnx=false", "trainer.enable_progress_bar=false",
)  # fmt: skip


def short_run(folder: Path, *words: str) -> Path:
    """Return the folder of a run of three steps on the rows of `folder`."""
    write_tokenizer(folder / "tokenizer")
    config = composed(folder, *SHORT, f"data.tokenizer={folder / 'tokenizer'}", *words)
    run(config, folder / "run", [])
    return folder / "run"


def same_texts(folder: Path) -> None:
    """Write a regression whose texts are all the same, so that no model's predictions have a correlation with anything."""
    write_rows(folder, "jsonl", lines([{"sentence": "same", "score": score} for score in (0.0, 0.5, 1.0, 2.0)]))


def undefined(folder: Path) -> tuple[Any, ...]:
    """Return the scores of a run, the words of its report, and how it ended."""
    place = short_run(folder, "data=text_regression", "data.label_column=score")
    results = json.loads((place / "metrics.json").read_text(), parse_constant=pytest.fail)
    report = (place / "report.md").read_text()
    return results["teacher"], results["student"], results["status"], "undefined" in report, "diverged" in report


def only_test(folder: Path) -> None:
    write_rows(folder, "jsonl", lines(sentences(8)))
    (folder / "other").mkdir()
    (folder / "other" / "test.jsonl").write_text(lines(sentences(5)))


def tested(folder: Path) -> tuple[Any, ...]:
    """Return the split, the rows and the recorded figure of an evaluation on a folder that has a test file alone."""
    place = short_run(folder, "data=text", "data.num_labels=2", "export.packed=false")
    config = read_run(place, [f"data.path={folder / 'other'}", "data.validation_split=test"])
    result = evaluate(config, place, "student")
    return result["split"], result["rows"], result["recorded"]


WHOLE = {
    "c12 a constant regression": Case(same_texts, undefined, (None, None, "finished", True, False)),
    "c62 a test file alone": Case(only_test, tested, ("test", 5, None)),
}
