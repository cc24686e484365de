"""MiniLM as a sentence encoder: a ternary student from sentences without labels; about ten minutes on one core."""

import random
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset

from qat_lightning.commands.evaluate import evaluate
from qat_lightning.config.run_config import read_run
from tests.acceptance.test_real_data import DATA, MODEL, needs_shared, whole_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), needs_shared]

PAIRS = ["sentence1", "sentence2"]
SOURCES = {
    "sick/train": PAIRS, "snli/validation": ["premise", "hypothesis"], "glue/mnli/validation_matched": ["premise", "hypothesis"],
    "glue/cola/train": ["sentence"], "glue/qnli/validation": ["question", "sentence"], "trec/train": ["text"],
    "squad/validation": ["question"], "glue/rte/train": PAIRS,
}  # fmt: skip
HELD_OUT = 8000
"""The row of SNLI from which no sentence is trained on."""


def read(name: str) -> Dataset:
    return load_dataset("parquet", data_files=str(DATA / f"{name}.parquet"), split="train")


def write_data(folder: Path) -> Path:
    """Write sentences of several sets to train on, SICK's pairs, and sentences of SNLI that are in no other split."""
    sentences: dict[str, None] = {}
    for name, columns in SOURCES.items():
        rows = read(name)
        rows = rows.select(range(HELD_OUT)) if name.startswith("snli") else rows
        sentences |= dict.fromkeys(text for column in columns for text in rows[column] if 3 <= len(text.split()) <= 60)
    rest = read("snli/validation").select(range(HELD_OUT, 9842))
    held_out = dict.fromkeys(text for column in SOURCES["snli/validation"] for text in rest[column])
    shuffled = list(sentences)
    random.Random(0).shuffle(shuffled)
    Dataset.from_dict({"sentence": shuffled}).to_parquet(folder / "train.parquet")
    Dataset.from_dict({"sentence": [text for text in held_out if text not in sentences]}).to_parquet(
        folder / "snli.parquet"
    )
    for split in ("validation", "test"):
        read(f"sick/{split}").select_columns([*PAIRS, "relatedness_score"]).to_parquet(folder / f"{split}.parquet")
    return folder


def test_ternary_student_keeps_the_similarities_of_its_teacher(tmp_path):
    results = whole_run(
        tmp_path / "run", "+experiment=embed_minilm", f"model.path={MODEL}", f"data.path={write_data(tmp_path)}",
        "data.pair_columns=[sentence1,sentence2]", "data.score_column=relatedness_score", "data.test_split=test",
        "trainer.enable_progress_bar=false", "threads=2",
    )  # fmt: skip
    assert results["test"]["test"]["student"]["spearman"] >= 0.97
    assert results["test"]["test"]["untrained"]["spearman"] < 0.9
    assert results["export"]["packed"]["bytes"] <= 6.4 * 2**20
    assert results["export"]["packed"]["largest_difference"] == 0
    config = read_run(tmp_path / "run")
    config.data |= {"validation_split": "snli", "pair_columns": None, "score_column": None}
    assert evaluate(config, tmp_path / "run", "packed")["scores"]["spearman"] >= 0.92
