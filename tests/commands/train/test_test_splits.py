"""`data.test_split`: scored once at the end, selected by nothing, and the same as `evaluate` says afterwards."""

import json

import pytest

from qat_lightning.commands.evaluate import evaluate
from qat_lightning.config.schema import ConfigError
from tests.training.runs import composed, save_tokenizer, saved_tiny, small_run, without

WORDS = ("good", "bad", "film", "day", "walk")
TEXT = without("data.rows")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with its tokenizer, and four splits; the labels of "wrong" are the other way round."""
    place = tmp_path_factory.mktemp("texts")
    model = saved_tiny(place / "model")
    save_tokenizer(model, *WORDS)
    rows = [f"{word} {noun}" for word in WORDS[:2] for noun in WORDS[2:]]
    for split, names in {
        "train": ("yes", "no"),
        "validation": ("yes", "no"),
        "test": ("yes", "no"),
        "wrong": ("no", "yes"),
    }.items():
        labels = [names["bad" in row] for row in rows]
        lines = [f"{row},{label}" for row, label in zip(rows, labels, strict=True)] * (5 if split == "train" else 1)
        (place / f"{split}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    return place


def words(folder, *more):
    return (
        f"model.path={folder / 'model'}", "data=text", f"data.path={folder}", "data.text_columns=[text]", "data.num_labels=2",
        "data.max_length=16", "stages.teacher.max_steps=40",
        "stages.teacher.max_epochs=null", "optimizer.lr=5e-3", *more,
    )  # fmt: skip


def test_models_are_scored_once_on_each_test_split(folder, tmp_path):
    results = small_run(tmp_path, *words(folder, "data.test_split=[test,wrong]"), small=TEXT)
    test, wrong = results["test"]["test"], results["test"]["wrong"]
    assert (test["rows"], wrong["rows"]) == (6, 6)
    for model in ("teacher", "untrained", "student"):
        assert test[model]["accuracy"] == pytest.approx(results[model])  # the same rows as those of validation
        assert wrong[model]["accuracy"] == pytest.approx(1 - results[model])
    assert results["teacher"] > 0.9
    again = evaluate(composed(*words(folder, "data.validation_split=wrong"), small=TEXT), tmp_path, "student")
    assert again["scores"] == pytest.approx(wrong["student"])
    assert "## Test" in (tmp_path / "report.md").read_text()

    seconds = results["seconds"]
    later = small_run(tmp_path, *words(folder, "data.test_split=wrong"), small=TEXT)  # nothing is trained again
    assert later["seconds"] == seconds
    assert list(json.loads((tmp_path / "metrics.json").read_text())["test"]) == ["wrong"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.test_split=held_out", r"data\.test_split=held_out: .*no file of the held_out split"),
        ("data.test_split=[test,unlabelled]", r"data\.test_split=unlabelled: .*no column 'label'"),
    ],
)
def test_wrong_split_is_named_before_anything_is_trained(folder, tmp_path, override, message):
    (folder / "unlabelled.csv").write_text("text\ngood film\n")
    with pytest.raises(ConfigError, match=message):
        small_run(tmp_path, *words(folder, override), small=TEXT)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_data_without_named_splits_say_so(tmp_path):
    with pytest.raises(ConfigError, match="no named splits"):
        small_run(tmp_path, "+data.test_split=test")
