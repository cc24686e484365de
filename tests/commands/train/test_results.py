"""The end of a run: scores that are undefined, exports that fail, and what a folder says of itself in between."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qat_lightning.commands import export
from qat_lightning.commands.evaluate import evaluate
from qat_lightning.commands.export import NotFaithfulError
from qat_lightning.commands.model_comparison import Comparison, compare
from qat_lightning.commands.train.pipeline import opened
from qat_lightning.commands.train.results import check_recorded
from qat_lightning.commands.train.run import run
from qat_lightning.config.builders.models import build_model
from qat_lightning.config.run_config import located, read_run
from qat_lightning.config.schema import ModelConfig, RunConfig
from qat_lightning.exporters.onnx.format import OnnxFormat
from qat_lightning.exporters.onnx.runtime import OnnxError
from tests.training.runs import composed, save_tokenizer, small_run, text_config


def strict(place: Path) -> Any:
    """The content of a file that every JSON parser accepts: NaN and Infinity are not JSON."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{place} holds {word}")

    return json.loads(place.read_text(encoding="utf-8"), parse_constant=refuse)


# --- undefined scores -------------------------------------------------------------------------------------------------


def texts(folder: Path, data: str, *words: str) -> RunConfig:
    """The configuration of a small run on the texts of a folder, which gets a tokenizer."""
    save_tokenizer(folder / "tokenizer", "same", "text")
    return text_config(folder, "data.text_columns=[sentence]", "data.batch_size=2", *words, data=data)


def write_rows(place: Path, column: str, labels: Sequence[Any]) -> None:
    rows = [{"sentence": "same text" if number % 3 else "text", column: label} for number, label in enumerate(labels)]
    place.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.fixture
def constant(tmp_path: Path) -> RunConfig:
    """A regression whose texts are all the same, so that every model predicts one number: no correlation is defined."""
    for split in ("train", "validation"):
        rows = (f'{{"sentence": "same text", "score": {score}}}\n' for score in (0.0, 0.5, 1.0, 2.0))
        (tmp_path / f"{split}.jsonl").write_text("".join(rows))
    return texts(tmp_path, "text_regression", "data.label_column=score")


def test_an_undefined_score_ends_no_run_and_is_reported_as_undefined(tmp_path, constant, capsys):
    folder = tmp_path / "run"
    results = run(constant, folder, [])
    assert (results["teacher"], results["untrained"], results["student"]) == (None, None, None)
    assert results["status"] == "finished"
    assert strict(folder / "metrics.json")["student"] is None
    assert evaluate(constant, folder, "packed")["scores"]["pearson"] is None
    assert strict(folder / "evaluation" / "packed.json")["scores"]["pearson"] is None
    files = list(folder.rglob("*.json"))
    assert {path.name for path in files} >= {"metrics.json", "train.json", "packed.json", "manifest.json"}
    for path in files:
        strict(path)
    report, card, printed = (
        (folder / "report.md").read_text(), (folder / "export" / "README.md").read_text(), capsys.readouterr().out
    )  # fmt: skip
    assert "The student's pearson is undefined" in report
    assert "| teacher | undefined |" in card
    assert "train: 8 steps" in printed
    assert "pearson undefined" in printed
    for text in (report, card, printed):
        assert "nan" not in text
        assert "None" not in text
        assert "diverged" not in text
    assert run(constant, folder, [])["student_hash"] == results["student_hash"], "what was written is read again"


@pytest.mark.parametrize(
    ("score", "reference", "difference", "agreement", "expected"),
    [
        (math.nan, math.nan, 0.1, 1.0, True),
        (math.nan, math.nan, 0.1, 0.996, True),
        (math.nan, math.nan, 0.1, 0.99, False),
        (math.inf, math.inf, 0.1, 1.0, True),
        (-0.06, math.nan, 2e-9, 1.0, True),  # constant but for the last bit
        (math.nan, 0.5, 2e-9, 1.0, True),
        (-0.06, math.nan, 0.1, 1.0, False),
        (math.inf, 9.0, 5.0, 1.0, False),
        (0.5, 0.504, 9.0, 0.5, True),
        (0.5, 0.506, 0.0, 1.0, False),
    ],
)
def test_an_export_is_judged_by_its_predictions_and_logits_where_the_metric_is_undefined(
    score, reference, difference, agreement, expected
):
    assert export.is_as_good(Comparison(score, reference, difference, agreement, 500)) is expected


def test_logits_that_are_not_numbers_agree_with_none_that_are(tmp_path):
    config = composed("data.rows=4")
    data = opened(config, tmp_path).data
    model = build_model(config, data).eval()

    class Spoilt(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            logits = model(input_ids=input_ids, attention_mask=attention_mask).logits.clone()
            logits[0, logits[0].argmax()] = math.nan  # which argmax takes for the largest
            return {"logits": logits}

    seen = compare(Spoilt(), model, data, 4)
    assert (seen.largest_difference, seen.agreement) == (math.inf, 0.75)
    assert compare(Spoilt(), Spoilt(), data, 4).largest_difference == 0


# --- another split, from another directory ----------------------------------------------------------------------------


def test_evaluate_reads_one_split_from_anywhere_and_compares_only_what_is_the_same(tmp_path, monkeypatch, capsys):
    """Relative folders, as typed where the run was started; a test split without the train file that named the classes."""
    home, other, elsewhere = (tmp_path / name for name in ("home", "other", "elsewhere"))
    for place in (home / "rows", other, elsewhere):
        place.mkdir(parents=True)
    for split in ("train", "validation"):
        write_rows(home / "rows" / f"{split}.jsonl", "label", ["no", "yes", "yes", "no"])
    write_rows(other / "test.jsonl", "label", ["yes", "no", "yes"])
    monkeypatch.chdir(home)
    results = run(texts(home, "text", "data.path=rows", "data.tokenizer=tokenizer"), Path("run"), [])
    assert results["label_names"] == ["no", "yes"]
    assert (results["validation"]["split"], results["validation"]["rows"]) == ("validation", 4)
    folder = home / "run"

    monkeypatch.chdir(elsewhere)
    (home / "rows" / "train.jsonl").unlink()
    printed = evaluate(located(read_run(folder)), folder, "packed")
    assert printed["recorded"] == results["student"] == printed["scores"]["accuracy"]

    given = [f"data.path={other}", "data.validation_split=test"]
    printed = evaluate(located(read_run(folder, given), given), folder, "packed")
    assert (printed["split"], printed["rows"], printed["recorded"]) == ("test", 3, None)
    assert strict(folder / "evaluation" / "packed-other-test.json") == printed
    assert strict(folder / "evaluation" / "packed.json")["split"] == "validation", "not written over"
    said = capsys.readouterr().out
    assert "packed · other · 3 test rows" in said
    assert "No score to compare with" in said.split("3 test rows")[1]


def test_relative_folders_of_a_run_are_found_where_it_was_started(tmp_path, monkeypatch):
    started, here = tmp_path / "started", tmp_path / "here"
    (started / "rows").mkdir(parents=True)
    (here / "model").mkdir(parents=True)
    (started / "model").mkdir()
    config = RunConfig(
        working_directory=str(started),
        model=ModelConfig(path="model"),
        data={"path": "rows", "tokenizer": "owner/name"},
    )
    monkeypatch.chdir(here)
    found = located(config)
    assert found.data == {"path": str(started / "rows"), "tokenizer": "owner/name"}
    assert found.model.path == "model", "what is here is taken"
    assert located(config, ["data.path=rows"]) == config, "what is typed is meant from here"
    unknown = replace(config, working_directory=None)
    assert located(unknown) == unknown


# --- exports that fail ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    small_run(folder)
    return folder


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def unfaithful(*arguments: Any) -> Comparison:
    return Comparison(0.0, 1.0, 9.0, 0.0, 24)


def test_an_export_that_fails_costs_neither_results_nor_report(tmp_path, monkeypatch, finished):
    whole = strict(finished / "metrics.json")
    with monkeypatch.context() as patch:
        patch.setattr(export, "compare", unfaithful)
        with pytest.raises(NotFaithfulError):
            small_run(tmp_path)
    left = strict(tmp_path / "metrics.json")
    assert left["status"] == "export failed"
    assert left.keys() == whole.keys()
    assert (left["student"], left["student_hash"], left["export"]) == (whole["student"], whole["student_hash"], None)
    assert "**The export failed.**" in (tmp_path / "report.md").read_text()
    trained = (tmp_path / "checkpoints" / "train.safetensors").stat().st_mtime_ns
    assert small_run(tmp_path)["status"] == strict(tmp_path / "metrics.json")["status"] == "finished"
    assert strict(tmp_path / "metrics.json")["export"]["packed"]["agreement"] == 1
    assert "export" not in (tmp_path / "report.md").read_text().splitlines()[2]
    assert (tmp_path / "checkpoints" / "train.safetensors").stat().st_mtime_ns == trained, "not trained again"


def test_a_form_that_cannot_be_exported_costs_no_other(copy, monkeypatch, capsys):
    def refuse(*arguments: Any) -> None:
        raise OnnxError("an operator is missing")

    monkeypatch.setattr(OnnxFormat, "write", refuse)
    with pytest.raises(OnnxError, match=r"an operator is missing: leave it out with export\.onnx=false"):
        small_run(copy, "export.onnx=true")
    for place in (copy / "metrics.json", copy / "export" / "metrics.json"):
        exported = strict(place).get("export", strict(place))
        assert exported["packed"]["agreement"] == 1
        assert exported["onnx"] is None
    assert "load_packed" in (copy / "export" / "README.md").read_text()
    assert "report:" in capsys.readouterr().out, "the table is printed before the error"


def test_results_are_written_before_an_export_begins(copy, monkeypatch):
    def killed(*arguments: Any) -> None:
        assert strict(copy / "metrics.json")["status"] == "trained"
        assert "The exports are not finished." in (copy / "report.md").read_text()
        raise KeyboardInterrupt

    (copy / "metrics.json").unlink()
    (copy / "report.md").unlink()
    monkeypatch.setattr(export.Exporter, "export", killed)
    with pytest.raises(KeyboardInterrupt):
        small_run(copy)
    assert strict(copy / "metrics.json")["status"] == "trained"


def test_another_student_than_the_recorded_one_is_refused(copy):
    results = strict(copy / "metrics.json")
    check_recorded(copy, results)
    with pytest.raises(
        ValueError, match=r"train\.safetensors does not hold the student that .*metrics\.json describes"
    ):
        check_recorded(copy, results | {"student_hash": "0" * 64})
    for content in ("", "[]", '{"a": 1}'):
        (copy / "metrics.json").write_text(content)
        check_recorded(copy, results)
