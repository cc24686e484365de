"""`python -m qat_lightning.predict`: labels for rows without labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image as Pillow
from pyarrow import csv, parquet

from qat_lightning.commands.evaluate import evaluate
from qat_lightning.commands.predict import predict
from qat_lightning.commands.train.run import run
from qat_lightning.config.run_config import read_run
from qat_lightning.config.schema import ConfigError
from tests.training.runs import composed, save_tokenizer, small_run, text_config, without

WORDS = ["good", "bad", "film", "plot"]
SHORT = ("stages.teacher.max_steps=30", "stages.intervene.max_steps=4", "stages.train.max_steps=8", "optimizer.lr=3e-3")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on texts with named classes, and its validation rows with and without labels."""
    folder = tmp_path_factory.mktemp("texts")
    save_tokenizer(folder / "tokenizer", *WORDS)
    drawn = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(30):
        words = [WORDS[number] for number in torch.randint(4, (4,), generator=drawn)]
        rows.append((" ".join(words), "pos" if words.count("good") > words.count("bad") else "neg"))
    for split, chosen in (("train", rows), ("validation", rows[:20])):
        lines = [
            json.dumps({"sentence": text, "label": label, "note": f"n{number}"})
            for number, (text, label) in enumerate(chosen)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    bare = [json.dumps({"sentence": text, "note": f"n{number}"}) for number, (text, _) in enumerate(rows[:20])]
    (folder / "bare.jsonl").write_text("\n".join(bare))
    config = text_config(
        folder,
        *SHORT,
        "data.text_columns=[sentence]",
        "data.batch_size=3",
        "export.onnx=true",
        "model.architecture.num_hidden_layers=1",
    )
    run(config, folder / "run", [])
    return folder


@pytest.mark.parametrize("model", ["student", "teacher", "packed", "onnx"])
def test_predictions_are_those_that_evaluate_scores(model: str, texts: Path, tmp_path: Path) -> None:
    config = read_run(texts / "run")
    score = evaluate(config, texts / "run", model)["scores"]["accuracy"]
    predict(config, texts / "run", model, texts / "bare.jsonl", tmp_path / "out.jsonl")
    labelled = [json.loads(line) for line in (texts / "validation.jsonl").read_text().splitlines()]
    predicted = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    right = [row["prediction"] == label["label"] for row, label in zip(predicted, labelled, strict=True)]
    assert sum(right) / len(right) == pytest.approx(score)
    for number, row in enumerate(predicted):
        assert list(row) == ["sentence", "note", "prediction", "probability_neg", "probability_pos"]
        assert row["note"] == f"n{number}"
        likely = "pos" if row["probability_pos"] > row["probability_neg"] else "neg"
        assert (row["prediction"], row["probability_pos"] + row["probability_neg"]) == (likely, pytest.approx(1))


def test_each_form_of_output_holds_the_same_predictions(texts: Path, tmp_path: Path) -> None:
    for suffix in ("csv", "parquet", "tsv"):
        predict(read_run(texts / "run"), texts / "run", "packed", texts / "bare.jsonl", tmp_path / f"out.{suffix}")
    table, lines = parquet.read_table(tmp_path / "out.parquet"), (tmp_path / "out.tsv").read_text().splitlines()
    assert csv.read_csv(tmp_path / "out.csv")["prediction"].to_pylist() == table["prediction"].to_pylist()
    numbers = ["neg", "pos"]
    assert lines == [
        "index\tprediction",
        *(f"{row}\t{numbers.index(name)}" for row, name in enumerate(table["prediction"].to_pylist())),
    ]


@pytest.mark.parametrize(
    ("model", "source", "target", "named"),
    [
        ("student", "bare.jsonl", "out.xls", "output="),
        ("student", "nowhere.csv", "out.csv", "input="),
        ("student", "tokenizer", "out.csv", "input="),
        ("student", "wrong.csv", "out.csv", "data.text_columns"),
        ("other", "bare.jsonl", "out.csv", "model="),
    ],
)
def test_wrong_arguments_are_named(
    model: str, source: str, target: str, named: str, texts: Path, tmp_path: Path
) -> None:
    (texts / "wrong.csv").write_text("text\ngood film\n")
    with pytest.raises(ConfigError, match=named):
        predict(read_run(texts / "run"), texts / "run", model, texts / source, tmp_path / target)
    assert not (tmp_path / target).exists()


def test_an_existing_file_is_kept(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(ConfigError, match="output="):
        predict(read_run(texts / "run"), texts / "run", "packed", texts / "bare.jsonl", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "mine"


def test_a_folder_of_images_is_predicted_in_the_order_of_its_names(tmp_path: Path) -> None:
    for number in range(8):
        for split in ("train", "validation"):
            place = tmp_path / "data" / split / ("dark" if number % 2 else "light") / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Pillow.new("RGB", (16, 16), (20 if number % 2 else 230,) * 3).save(place)
    words = (*SHORT, "model=tiny_vit", "data=images", f"data.path={tmp_path / 'data'}", "data.num_labels=2",
             "data.size=16", "data.batch_size=4", "export.packed=false")  # fmt: skip
    score = run(composed(*words, small=without("data", "model")), tmp_path / "run", [])["student"]
    source = tmp_path / "data" / "validation"
    predict(read_run(tmp_path / "run"), tmp_path / "run", "student", source, tmp_path / "out.csv")
    table = csv.read_csv(tmp_path / "out.csv")
    paths = table["image"].to_pylist()
    assert paths == sorted(paths)
    right = [Path(path).parent.name == name for path, name in zip(paths, table["prediction"].to_pylist(), strict=True)]
    assert sum(right) / len(right) == pytest.approx(score)


def test_language_models_have_no_predictions(tmp_path: Path) -> None:
    words = ("model=tiny_gpt2", "data=random_tokens", "losses=logits", "intervention=output", "stages.train.max_steps=2",
             "intervention_schedule=output", "stages.teacher.max_steps=1", "export.packed=false")  # fmt: skip
    small_run(tmp_path / "run", *words)
    (tmp_path / "in.csv").write_text("text\na\n")
    with pytest.raises(ConfigError, match="input="):
        predict(read_run(tmp_path / "run"), tmp_path / "run", "student", tmp_path / "in.csv", tmp_path / "out.csv")
