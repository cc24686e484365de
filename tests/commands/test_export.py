"""What a run hands over, and that it is what the student was."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import onnxruntime
import pytest
import torch

from qat_lightning import load_packed
from qat_lightning.commands import export
from qat_lightning.commands.evaluate import evaluate
from qat_lightning.commands.model_comparison import Comparison, InFloat64, compare
from qat_lightning.commands.train.pipeline import opened
from qat_lightning.commands.train.run import run as run_config
from qat_lightning.config.run_config import in_one_process, read_run
from qat_lightning.config.schema import ConfigError
from tests.training.runs import composed, small_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict]:
    """A run with all that it can hand over."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, small_run(folder, "export.onnx=true")


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def test_a_run_ends_with_a_packed_folder_an_onnx_file_and_a_card(finished):
    folder, results = finished
    assert {path.name for path in (folder / "export").iterdir()} == {
        "README.md",
        "metrics.json",
        "model.onnx",
        "packed",
    }
    told = results["export"]
    assert told == json.loads((folder / "export" / "metrics.json").read_text())
    assert told["packed"]["bytes"] == (folder / "export" / "packed" / "packed.safetensors").stat().st_size
    assert told["onnx"]["bytes"] == (folder / "export" / "model.onnx").stat().st_size
    assert told["float32"] == results["bytes"]["float32"]
    for form in ("packed", "onnx"):
        assert told[form]["ratio"] == pytest.approx(told["float32"] / told[form]["bytes"], abs=1e-3)
        assert told[form]["score"] == told[form]["student"] == results["student"]
        assert told[form]["agreement"] == 1
        assert told[form]["rows"] == 24
    assert told["packed"]["largest_difference"] == 0
    assert 0 < told["onnx"]["largest_difference"] < 0.05
    assert 2 < told["packed"]["bits_per_weight"] < 2.3, "2 bits a weight, and scales for a table of rows of 32"
    assert {"bert.embeddings.position_embeddings", "classifier"} <= set(told["packed"]["full_precision"])
    assert "classifier" in (folder / "report.md").read_text(), "what stays in full precision is told"


def test_the_packed_folder_answers_as_the_student_bit_by_bit(finished):
    folder, _ = finished
    run = opened(read_run(folder), folder)
    student, packed = run.restored("train").eval(), load_packed(folder / "export" / "packed")
    batch = {name: value for name, value in run.data.example_batch(24).items() if name != "labels"}
    with torch.no_grad():
        assert torch.equal(packed(**batch).logits, student(**batch).logits)


def test_the_onnx_file_answers_as_the_student_in_a_plain_session(finished):
    """As a user would open it: no options, numpy in and out, one row alone."""
    folder, _ = finished
    run = opened(read_run(folder), folder)
    session = onnxruntime.InferenceSession(folder / "export" / "model.onnx")
    student = run.restored("train").eval()
    row = {name: value for name, value in run.data.example_batch(1).items() if name != "labels"}
    (logits,) = session.run(None, {given.name: row[given.name].numpy() for given in session.get_inputs()})
    with torch.no_grad():
        numpy.testing.assert_allclose(logits, student(**row).logits.numpy(), atol=0.02)


@pytest.mark.parametrize("model", ["student", "teacher", "packed", "onnx"])
def test_evaluate_finds_the_recorded_figure(copy, finished, model):
    _, results = finished
    told = evaluate(read_run(copy), copy, model)
    expected = results["teacher" if model == "teacher" else "student"]
    assert told["scores"][told["metric"]] == pytest.approx(expected, abs=1e-6)
    assert told["recorded"] == expected
    assert json.loads((copy / "evaluation" / f"{model}.json").read_text()) == told


def test_evaluate_scores_other_rows(copy):
    told = evaluate(read_run(copy, ["data.validation_limit=5"]), copy, "packed")
    assert (told["rows"], told["recorded"]) == (5, None), "five rows have another figure than all"
    assert json.loads((copy / "evaluation" / "packed-validation-5.json").read_text()) == told
    assert not (copy / "evaluation" / "packed.json").exists()


def test_an_export_needs_no_checkpoints(copy):
    shutil.rmtree(copy / "checkpoints")
    assert evaluate(read_run(copy), copy, "packed")["scores"]
    with pytest.raises(ValueError, match="has not finished its train stage"):
        evaluate(read_run(copy), copy, "student")


def test_an_export_trains_nothing(copy):
    shutil.rmtree(copy / "checkpoints")
    ended = command("export", copy.parent, "run=copy", "export.onnx=false")
    assert ended.returncode == 1
    assert "teacher.json is not there: the run has not finished its teacher stage" in ended.stderr
    assert not (copy / "checkpoints").exists()


@pytest.mark.parametrize("missing", ["train.json", "train.safetensors", "teacher.json"])
def test_an_export_of_what_is_not_finished_makes_nothing(copy, monkeypatch, missing):
    (copy / "checkpoints" / missing).unlink()
    config = read_run(copy)
    monkeypatch.setattr("qat_lightning.commands.train.run.opened", lambda *_: pytest.fail("the data was read"))
    before = sorted(copy.rglob("*"))
    with pytest.raises(ValueError, match=f"{missing} is not there"):
        run_config(config, copy, [], in_one_process(config))
    assert sorted(copy.rglob("*")) == before


def test_an_export_makes_no_callback_and_no_logger(copy, monkeypatch):
    for maker in ("build_callbacks", "_loggers"):
        monkeypatch.setattr(f"qat_lightning.config.builders.training.{maker}", lambda *_: pytest.fail("made"))
    config = read_run(copy, ["export.packed=false", "export.onnx=false"])
    run_config(config, copy, [], in_one_process(config))


def test_what_is_missing_is_told_with_what_makes_it(copy):
    (copy / "export" / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"onnxruntime cannot read .*model\.onnx .*: export again"):
        evaluate(read_run(copy), copy, "onnx")
    (copy / "export" / "model.onnx").unlink()
    with pytest.raises(ConfigError, match=r"python -m qat_lightning\.export run=.* export\.onnx=true makes it"):
        evaluate(read_run(copy), copy, "onnx")


def test_a_damaged_checkpoint_is_told_in_words(copy):
    (copy / "checkpoints" / "train.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"train\.safetensors is not the file that stage .train. wrote"):
        evaluate(read_run(copy), copy, "student")


def test_a_score_that_neither_has_is_no_difference(copy, monkeypatch):
    """Pearson's correlation of one row, or with a student that answers one number."""
    config = read_run(copy)
    run = opened(config, copy)
    exporter = export.Exporter(config, copy, run.data, run.restored("train"), lambda *_: None)
    nan = float("nan")
    exporter._check(Comparison(nan, nan, 0.0, 1.0, 500), "export/packed", "export.packed=false", exact=True)
    monkeypatch.setattr(export, "compare", lambda *_: Comparison(0.5, 0.5, 0.0, 1.0, 500))
    for score, reference in ((nan, 0.5), (0.5, nan)):
        with pytest.raises(export.NotFaithfulError, match="undefined"):
            exporter._check(Comparison(score, reference, 0.1, 1.0, 500), "export/packed", "export.packed=false")


def test_an_export_that_fails_leaves_no_card_of_the_one_before(copy, monkeypatch):
    monkeypatch.setattr(export, "compare", lambda *_: Comparison(0.0, 1.0, 1.0, 0.0, 1000))
    config = read_run(copy, ["export.onnx=false"])
    run = opened(config, copy)
    with pytest.raises(export.NotFaithfulError):
        export.Exporter(config, copy, run.data, run.restored("train"), lambda *_: None).export()
    assert not (copy / "export" / "README.md").exists()
    assert not (copy / "export" / "metrics.json").exists()


def test_what_an_export_leaves_out_is_told_where_it_lies(copy):
    lines: list[str] = []
    config = read_run(copy, ["export.onnx=false"])
    run = opened(config, copy)
    export.Exporter(config, copy, run.data, run.restored("train"), lambda *line: lines.append(": ".join(line))).export()
    assert any("export/model.onnx" in line and "left as an earlier export made it" in line for line in lines)


def test_a_model_that_is_none_is_refused(copy):
    with pytest.raises(ConfigError, match="did you mean 'packed'"):
        evaluate(read_run(copy), copy, "pakced")


def test_what_does_not_do_as_the_student_is_refused(copy, monkeypatch):
    """The check itself: a model whose classifier was turned round is not handed over."""

    def turned(folder):
        model = load_packed(folder)
        with torch.no_grad():
            model.classifier.weight.neg_()
            model.classifier.bias.neg_()
        return model

    monkeypatch.setattr(export, "load_packed", turned)
    config = read_run(copy, ["export.onnx=false"])
    run = opened(config, copy)
    with pytest.raises(
        export.NotFaithfulError, match=r"export/packed does not do as the student does .* leave it out with"
    ):
        export.Exporter(config, copy, run.data, run.restored("train"), lambda *_: None).export()


def test_what_the_students_own_rounding_does_is_told_and_not_refused(copy, monkeypatch):
    """A metric that is off while the logits are hardly: as in a student that has learned next to nothing."""
    seen, lines = [], []

    def off(other, model, data, rows):
        seen.append(compare(other, model, data, rows))
        metric = seen[-1].score if isinstance(other, InFloat64) else seen[-1].score + 0.02
        return dataclasses.replace(seen[-1], score=metric)

    monkeypatch.setattr(export, "compare", off)
    config = read_run(copy, ["export.packed=false", "export.onnx=true"])
    run = opened(config, copy)
    export.Exporter(config, copy, run.data, run.restored("train"), lambda *line: lines.append(": ".join(line))).export()
    onnx, wide = seen
    assert 0 < onnx.largest_difference <= export.TIMES * wide.largest_difference
    assert any("that is the student's own rounding" in line for line in lines)
    monkeypatch.setattr(export, "TIMES", 0.0)
    with pytest.raises(export.NotFaithfulError, match=r"leave it out with export\.onnx=false"):
        export.Exporter(
            config, copy, run.data, run.restored("train"), lambda *line: lines.append(": ".join(line))
        ).export()


def test_compare_against_numbers_by_hand():
    config = composed("data.rows=6")
    run = opened(config, Path())
    from qat_lightning.config.builders.models import build_model

    model = build_model(config, run.data).eval()
    seen = compare(model, model, run.data, 4)
    assert (seen.rows, seen.largest_difference, seen.agreement) == (4, 0.0, 1.0)

    class Shifted(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            logits = model(input_ids=input_ids, attention_mask=attention_mask).logits.clone()
            logits[0] = logits[0].flip(-1) + 5.0
            return {"logits": logits}

    seen = compare(Shifted(), model, run.data, 4)
    first = run.data.collate([run.data.validation_rows[row] for row in range(4)])
    with torch.no_grad():
        logits = model(first["input_ids"], attention_mask=first["attention_mask"]).logits
    changed = bool(logits[0].argmax() != logits[0].flip(-1).argmax())
    assert changed, "two classes: the larger one is the other one now"
    assert seen.agreement == 0.75
    assert seen.largest_difference == pytest.approx(float((logits[0].flip(-1) + 5 - logits[0]).abs().max()))
    right = float((logits.argmax(-1) == first["labels"]).float().mean())
    assert seen.reference == pytest.approx(right)
    assert abs(seen.score - right) == pytest.approx(0.25)


def test_without_exports_there_is_no_folder(tmp_path):
    results = small_run(tmp_path, "export.packed=false")
    assert results["export"] is None
    assert not (tmp_path / "export").exists()


def test_half_precision_and_trits_make_it_smaller_and_say_so(copy, finished):
    config = read_run(copy, ["export.onnx=false", "export.unquantized_dtype=float16", "export.ternary_encoding=base3"])
    told = run_config(config, copy, [])["export"]
    before = finished[1]["export"]["packed"]
    assert told["onnx"] is None
    assert told["packed"]["bytes"] < before["bytes"]
    assert told["packed"]["full_precision_bytes"] < 0.55 * before["full_precision_bytes"]
    assert before["bits_per_weight"] - told["packed"]["bits_per_weight"] == pytest.approx(2 - 8 / 5, abs=0.01)
    assert 0 < told["packed"]["largest_difference"] < 0.1


@pytest.mark.parametrize(
    "overrides",
    [
        (
            "model=tiny_llama",
            "data=random_tokens",
            "losses=token_scaled",
            "intervention=none",
            "intervention_schedule=none",
        ),
        (
            "model=tiny_gpt2",
            "data=random_tokens",
            "losses=task",
            "teacher=none",
            "intervention=none",
            "intervention_schedule=none",
        ),
    ],
)
def test_a_decoder_is_packed_and_has_no_onnx_file(tmp_path, overrides):
    told = small_run(tmp_path, "export.onnx=true", *overrides)["export"]
    assert told["onnx"] is None
    assert not (tmp_path / "export" / "model.onnx").exists()
    assert told["packed"]["agreement"] == 1
    assert told["packed"]["largest_difference"] == 0


def test_full_precision_is_exported_too(tmp_path):
    told = small_run(tmp_path, "quantization=none", "intervention=none", "intervention_schedule=none")["export"][
        "packed"
    ]
    assert told["bits_per_weight"] == 32
    assert told["largest_difference"] == 0


def test_questions_are_exported(tmp_path):
    told = small_run(tmp_path, "data=random_questions", "export.onnx=true", "model=tiny")["export"]
    assert told["onnx"]["outputs"] == ["start_logits", "end_logits"]
    assert told["onnx"]["agreement"] > 0.95
    assert told["packed"]["largest_difference"] == 0


# --- commands -------------------------------------------------------------------------------------------------------


def command(name: str, folder: Path, *words: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": "http://127.0.0.1:9"}
    return subprocess.run(
        [sys.executable, "-m", f"qat_lightning.{name}", *words],
        capture_output=True, text=True, cwd=folder, env=environment, timeout=240, check=False,
    )  # fmt: skip


def test_evaluate_from_the_command_line(copy):
    ended = command("evaluate", copy.parent, f"run={copy.name}", "model=packed", "threads=1")
    assert ended.returncode == 0, ended.stderr
    assert "packed · random text · 24 validation rows" in ended.stdout
    assert "recorded" in ended.stdout


def test_export_from_the_command_line_runs_no_stage(copy):
    before = {path.name: path.read_bytes() for path in (copy / "checkpoints").iterdir()}
    (copy / "export" / "packed" / "packed.safetensors").write_bytes(b"damaged")
    ended = command("export", copy.parent, f"run={copy.name}", "export.onnx=false")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("finished before, not run again") == 3
    assert {path.name: path.read_bytes() for path in (copy / "checkpoints").iterdir()} == before
    assert load_packed(copy / "export" / "packed")


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("evaluate", ["run=nowhere"], "holds no config.yaml"),
        ("evaluate", ["model=packed"], "run=DIR must be given"),
        ("evaluate", ["run=copy", "packed"], "'packed' is no key=value"),
        ("evaluate", ["run=copy", "data.vaildation_limit=3"], "did you mean 'data.validation_limit'?"),
        ("evaluate", ["run=copy", "seed=three"], "seed"),
        ("export", ["run=copy", "seed=3"], "would make another run of this one"),
        ("export", ["run=copy", "export.unquantized_dtype=float8"], "export.unquantized_dtype"),
        ("export", ["run=unfinished"], "has not finished its teacher stage"),
        ("evaluate", ["run=copy", "data.num_labels=3"], "of another model than configured"),
        ("evaluate", ["run=copy", "model=packed", "data.length=100"], "model=packed cannot be scored so"),
        ("evaluate", ["run=copy", "datta.rows=3"], "did you mean 'data'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistake_ends_in_one_message_and_exit_code_1(copy, name, words, message):
    (copy.parent / "unfinished").mkdir()
    shutil.copy(copy / "config.yaml", copy.parent / "unfinished")
    ended = command(name, copy.parent, *words)
    assert ended.returncode == 1
    assert message in ended.stderr
    assert ended.stderr.startswith("qat_lightning: ")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("name", ["evaluate", "export"])
def test_help(tmp_path, name):
    assert command(name, tmp_path, "--help").stdout.startswith(f"python -m qat_lightning.{name} run=DIR")


def test_a_folder_is_not_changed_by_a_refusal(copy):
    before = sorted(path for path in copy.rglob("*"))
    command("export", copy.parent, "run=copy", "seed=3")
    assert sorted(path for path in copy.rglob("*")) == before
