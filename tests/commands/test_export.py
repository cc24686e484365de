"""The exports of a run: each format is written, loaded again and compared with the student."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy
import onnxruntime
import pytest
import torch

from qat_lightning import load_packed
from qat_lightning.commands import export
from qat_lightning.commands.evaluate import evaluate
from qat_lightning.commands.model_comparison import InFloat64, compare
from qat_lightning.commands.train.pipeline import Run, opened
from qat_lightning.commands.train.run import run as run_config
from qat_lightning.config.builders.models import build_model
from qat_lightning.config.run_config import in_one_process, read_run
from qat_lightning.config.schema import ConfigError
from qat_lightning.exporters.onnx.format import OnnxFormat
from qat_lightning.exporters.packed.format import PackedFormat
from tests.command_line import Command, call
from tests.training.runs import composed, small_run

NO_INTERVENTION = ("intervention=none", "intervention_schedule=none")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, small_run(folder, "export.onnx=true")


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def open_run(folder: Path, *overrides: str) -> Run:
    return opened(read_run(folder, list(overrides)), folder)


def export_again(folder: Path, *overrides: str) -> list[str]:
    """Export the folder's student; returns the printed lines."""
    run, lines = open_run(folder, *overrides), []
    student = run.restored("train")
    export.Exporter(run.config, folder, run.data, student, lambda *line: lines.append(": ".join(line))).export()
    return lines


def test_a_run_ends_with_its_exports_and_a_card(finished):
    folder, results = finished
    names = {path.name for path in (folder / "export").iterdir()}
    assert names == {"README.md", "metrics.json", "model.onnx", "packed"}
    record = results["export"]
    assert record == json.loads((folder / "export" / "metrics.json").read_text())
    assert record["packed"]["bytes"] == (folder / "export" / "packed" / "packed.safetensors").stat().st_size
    assert record["onnx"]["bytes"] == (folder / "export" / "model.onnx").stat().st_size
    assert record["float32"] == results["bytes"]["float32"]
    for name in ("packed", "onnx"):
        assert record[name]["ratio"] == pytest.approx(record["float32"] / record[name]["bytes"], abs=1e-3)
        assert record[name]["score"] == record[name]["student"] == results["student"]
        assert (record[name]["agreement"], record[name]["rows"]) == (1, 24)
    assert record["packed"]["largest_difference"] == 0
    assert 0 < record["onnx"]["largest_difference"] < 0.05
    assert 2 < record["packed"]["bits_per_weight"] < 2.3  # and scales for a table of rows of 32
    assert {"bert.embeddings.position_embeddings", "classifier"} <= set(record["packed"]["full_precision"])


def test_both_exports_predict_as_the_student(finished):
    """The packed folder bit by bit, the ONNX file in a session without options."""
    folder, _ = finished
    run = open_run(folder)
    student, packed = run.restored("train").eval(), load_packed(folder / "export" / "packed")
    batch = {name: value for name, value in run.data.example_batch(24).items() if name != "labels"}
    session = onnxruntime.InferenceSession(folder / "export" / "model.onnx")
    row = {name: value[:1] for name, value in batch.items()}
    (logits,) = session.run(None, {given.name: row[given.name].numpy() for given in session.get_inputs()})
    with torch.no_grad():
        assert torch.equal(packed(**batch).logits, student(**batch).logits)
        numpy.testing.assert_allclose(logits, student(**row).logits.numpy(), atol=0.02)


@pytest.mark.parametrize("model", ["student", "teacher", "packed", "onnx"])
def test_evaluate_finds_the_recorded_figure(folder, finished, model):
    result = evaluate(read_run(folder), folder, model)
    expected = finished[1]["teacher" if model == "teacher" else "student"]
    assert result["scores"][result["metric"]] == pytest.approx(expected, abs=1e-6)
    assert result["recorded"] == expected
    assert json.loads((folder / "evaluation" / f"{model}.json").read_text()) == result


def test_evaluate_needs_the_export_alone_and_scores_other_rows(folder):
    shutil.rmtree(folder / "checkpoints")
    result = evaluate(read_run(folder, ["data.validation_limit=5"]), folder, "packed")
    assert (result["rows"], result["recorded"]) == (5, None)
    assert json.loads((folder / "evaluation" / "packed-validation-5.json").read_text()) == result
    assert not (folder / "evaluation" / "packed.json").exists()
    with pytest.raises(ValueError, match="train"):
        evaluate(read_run(folder), folder, "student")


@pytest.mark.parametrize("missing", ["train.json", "train.safetensors", "teacher.json"])
def test_an_unfinished_run_is_not_exported(folder, monkeypatch, missing):
    (folder / "checkpoints" / missing).unlink()
    config, before = read_run(folder), sorted(folder.rglob("*"))
    monkeypatch.setattr("qat_lightning.commands.train.run.opened", lambda *_: pytest.fail("the data was read"))
    with pytest.raises(ValueError, match=missing):
        run_config(config, folder, [], in_one_process(config))
    assert sorted(folder.rglob("*")) == before


def test_an_export_makes_no_callback_and_no_logger(folder, monkeypatch):
    for maker in ("build_callbacks", "build_loggers"):
        monkeypatch.setattr(f"qat_lightning.config.builders.training.{maker}", lambda *_: pytest.fail("made"))
    config = read_run(folder, ["export.packed=false", "export.onnx=false"])
    run_config(config, folder, [], in_one_process(config))


def test_evaluate_names_what_is_damaged_or_missing(folder):
    (folder / "export" / "model.onnx").write_bytes(b"damaged")
    (folder / "checkpoints" / "train.safetensors").write_bytes(b"damaged")
    for model, named in (("onnx", r"model\.onnx"), ("student", r"train\.safetensors")):
        with pytest.raises(ValueError, match=named):
            evaluate(read_run(folder), folder, model)
    (folder / "export" / "model.onnx").unlink()
    with pytest.raises(ConfigError, match=r"qat_lightning\.export run=.* export\.onnx=true"):
        evaluate(read_run(folder), folder, "onnx")
    with pytest.raises(ConfigError, match="did you mean 'packed'"):
        evaluate(read_run(folder), folder, "pakced")


def test_an_export_that_predicts_otherwise_is_refused(folder, monkeypatch):
    def negated(self: PackedFormat, folder: Path):
        model = load_packed(folder / "packed")
        with torch.no_grad():
            model.classifier.weight.neg_()
            model.classifier.bias.neg_()
        return model

    monkeypatch.setattr(PackedFormat, "load", negated)
    with pytest.raises(export.NotFaithfulError, match=r"export\.packed=false"):
        export_again(folder, "export.onnx=false")
    left = {path.name for path in (folder / "export").iterdir()}
    assert left == {"packed", "model.onnx"}, "no card and no figures of an earlier export"


def test_a_difference_that_is_the_students_own_rounding_is_accepted(folder, monkeypatch):
    """A metric that is off although the logits hardly are: a student that has learned little."""

    def off(other, model, data, rows):
        seen = compare(other, model, data, rows)
        score = seen.score + (0 if isinstance(other, InFloat64) else 0.02)
        return dataclasses.replace(seen, score=score, largest_difference=1e-6)

    monkeypatch.setattr(export, "compare", off)
    monkeypatch.setattr(OnnxFormat, "write", lambda *_: None)  # the file of the finished run stays
    overrides = ("export.packed=false", "export.onnx=true")
    assert any("rounding" in line for line in export_again(folder, *overrides))
    monkeypatch.setattr(export, "TIMES", 0.0)
    with pytest.raises(export.NotFaithfulError, match=r"export\.onnx=false"):
        export_again(folder, *overrides)


def test_compare_against_numbers_by_hand():
    config = composed("data.rows=6")
    run = opened(config, Path())
    model = build_model(config, run.data).eval()

    class Shifted(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            logits = model(input_ids=input_ids, attention_mask=attention_mask).logits.clone()
            logits[0] = logits[0].flip(-1) + 5.0
            return {"logits": logits}

    same, seen = compare(model, model, run.data, 4), compare(Shifted(), model, run.data, 4)
    assert (same.rows, same.largest_difference, same.agreement) == (4, 0.0, 1.0)
    first = run.data.collate([run.data.validation_rows[row] for row in range(4)])
    with torch.no_grad():
        logits = model(first["input_ids"], attention_mask=first["attention_mask"]).logits
    assert seen.agreement == 0.75  # two classes: the other one has the larger logit
    assert seen.largest_difference == pytest.approx(float((logits[0].flip(-1) + 5 - logits[0]).abs().max()))
    right = float((logits.argmax(-1) == first["labels"]).float().mean())
    assert seen.reference == pytest.approx(right)
    assert abs(seen.score - right) == pytest.approx(0.25)


def test_float16_and_base3_make_it_smaller(folder, finished):
    config = read_run(
        folder, ["export.onnx=false", "export.unquantized_dtype=float16", "export.ternary_encoding=base3"]
    )
    record, before = run_config(config, folder, [])["export"], finished[1]["export"]["packed"]
    assert record["onnx"] is None
    assert record["packed"]["full_precision_bytes"] < 0.55 * before["full_precision_bytes"]
    assert before["bits_per_weight"] - record["packed"]["bits_per_weight"] == pytest.approx(2 - 8 / 5, abs=0.01)
    assert 0 < record["packed"]["largest_difference"] < 0.1


def test_a_decoder_is_packed_and_has_no_onnx_file(tmp_path, capsys):
    overrides = ("model=tiny_llama", "data=random_tokens", "losses=token_scaled", *NO_INTERVENTION)
    record = small_run(tmp_path, "export.onnx=true", *overrides)["export"]
    assert record["onnx"] is None
    assert not (tmp_path / "export" / "model.onnx").exists()
    assert (record["packed"]["agreement"], record["packed"]["largest_difference"]) == (1, 0)
    assert "export.onnx: will not be written" in capsys.readouterr().out


def test_a_student_for_question_answering_is_exported(tmp_path):
    record = small_run(
        tmp_path / "questions",
        "data=random_questions",
        "export.onnx=true",
        "model=tiny",
        "model.architecture.num_hidden_layers=1",
    )["export"]
    assert record["onnx"]["outputs"] == ["start_logits", "end_logits"]
    assert record["onnx"]["agreement"] > 0.95
    assert record["packed"]["largest_difference"] == 0


def command(name: str, folder: Path, *words: str) -> Command:
    return call(folder, *words, module=f"qat_lightning.{name}")


def test_the_commands_run_no_stage(folder):
    before = {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}
    (folder / "export" / "packed" / "packed.safetensors").write_bytes(b"damaged")
    ended = command("export", folder.parent, f"run={folder.name}", "export.onnx=false")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("finished before, not run again") == 3
    assert {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()} == before
    ended = command("evaluate", folder.parent, f"run={folder.name}", "model=packed", "threads=1")
    assert ended.returncode == 0, ended.stderr
    assert "packed · random text · 24 validation rows" in ended.stdout


MISTAKES = [
    ("evaluate", ["run=nowhere"], "config.yaml"),
    ("evaluate", ["model=packed"], "run=DIR"),
    ("evaluate", ["run=copy", "packed"], "'packed'"),
    ("evaluate", ["run=copy", "data.vaildation_limit=3"], "did you mean 'data.validation_limit'?"),
    ("export", ["run=copy", "seed=3"], "seed"),
    ("export", ["run=copy", "export.unquantized_dtype=float8"], "export.unquantized_dtype"),
    ("evaluate", ["run=copy", "model=packed", "data.length=100"], "model=packed"),
]


@pytest.mark.parametrize(("name", "words", "named"), MISTAKES, ids=[" ".join(words) for _, words, _ in MISTAKES])
def test_a_mistake_ends_in_one_message_and_exit_code_1(folder, monkeypatch, capsys, name, words, named):
    from qat_lightning.commands import cli

    before = sorted(folder.rglob("*"))
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit) as ended:
        getattr(cli, name)()
    assert ended.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith("qat_lightning: ")
    assert named in message
    assert "Traceback" not in message
    assert sorted(folder.rglob("*")) == before
