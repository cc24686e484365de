"""Several labels a row from files to exports: learned, scored by F1, predicted by name."""

import pytest
from pyarrow import csv

from qat_lightning.commands.evaluate import evaluate
from qat_lightning.commands.predict import predict
from tests.training.runs import composed, save_tokenizer, saved_tiny, small_run, without

WORDS, NAMES = ("cat", "runs", "film", "day"), ("animal", "motion")
TEXTS = [f"{first} {second} {third}" for first in WORDS for second in WORDS for third in WORDS]
LABELS = [[name for name, word in zip(NAMES, WORDS, strict=False) if word in text] for text in TEXTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A row has the label "animal" if it has the word "cat", and "motion" if it has "runs"."""
    place = tmp_path_factory.mktemp("texts")
    save_tokenizer(saved_tiny(place / "model"), *WORDS)
    rows = [f'{text},"{",".join(labels)}"' for text, labels in zip(TEXTS, LABELS, strict=True)]
    for split in ("train", "validation"):
        (place / f"{split}.csv").write_text("\n".join(["text,labels", *rows]) + "\n")
    return place


def test_several_labels_a_row_from_files_to_exports(folder, tmp_path):
    words = (
        f"model.path={folder / 'model'}", "data=multi_label", f"data.path={folder}", "data.text_columns=[text]",
        "data.num_labels=2", "data.max_length=16", "stages.teacher.max_steps=60", "stages.teacher.max_epochs=null",
        "stages.train.max_steps=40", "optimizer.lr=5e-3", "losses=kdlsq_task",
    )  # fmt: skip
    small = without("data.rows")
    results = small_run(tmp_path / "run", *words, small=small)
    assert results["metric"] == "micro_f1"
    assert min(results["teacher"], results["student"]) > 0.8
    assert (results["answers"], results["label_names"]) == (None, list(NAMES))
    assert results["export"]["packed"]["agreement"] == 1

    config = composed(*words, small=small)
    scores = evaluate(config, tmp_path / "run", "packed")["scores"]
    assert scores["micro_f1"] == pytest.approx(results["student"])
    (tmp_path / "input.csv").write_text("\n".join(["text", *TEXTS]) + "\n")
    predict(config, tmp_path / "run", "packed", tmp_path / "input.csv", tmp_path / "output.csv")
    rows = csv.read_csv(tmp_path / "output.csv").to_pylist()
    found = [set(row["prediction"].split(",")) - {""} for row in rows]
    true = sum(len(set(labels) & own) for labels, own in zip(LABELS, found, strict=True))
    assert 2 * true / (sum(map(len, LABELS)) + sum(map(len, found))) == pytest.approx(results["student"])
    assert all((row["probability_animal"] > 0.5) == ("animal" in own) for row, own in zip(rows, found, strict=True))
