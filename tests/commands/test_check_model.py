"""The check of a family's table: what it names for each wrong row, and the command."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from qat_lightning.commands.check_model.checks import run_checks
from qat_lightning.commands.check_model.run import run_check
from qat_lightning.commands.check_model.tiny import make_batch, make_model, shrunk
from qat_lightning.config.schema import ConfigError
from qat_lightning.models.families import FAMILIES, Family
from tests.command_line import call
from tests.tiny_models import tiny_model

BERT = FAMILIES["bert"]


def parts(**changes: str) -> Family:
    return replace(
        BERT, layer_parts=BERT.layer_parts | {name.replace("_", "."): path for name, path in changes.items()}
    )


@pytest.mark.parametrize(
    ("table", "row", "there"),
    [
        (replace(BERT, layers="encoder.layers"), "layers", "layer (ModuleList)"),
        (replace(BERT, embeddings=("embedding",)), "embeddings", "embeddings (BertEmbeddings)"),
        (replace(BERT, embeddings=("embeddings.word_embeddings",)), "sites", "input of the first layer"),
        (replace(BERT, attention="attention"), "sites", "BertSelfAttention"),
        (replace(BERT, output="attention.output.dense"), "sites", "output"),
        (replace(BERT, output="output.LayerNorm", residual="output.LayerNorm"), "sites", "residual"),
        (parts(attention_key="attention.self.keys"), "layer_parts['attention.key']", "key (Linear)"),
        (parts(attention_key="attention.self.query"), "layer_parts['attention.key']", "is also"),
        (
            parts(attention_key="attention.self.value", attention_value="attention.self.key"),
            "sites",
            "layer_parts['attention.key']",
        ),
        (parts(feedforward_out="output.LayerNorm"), "packed", "LayerNorm"),
        (replace(BERT, head_parts={"head": "classifiers"}), "head_parts['head']", "classifier (Linear)"),
    ],
)
def test_a_wrong_row_is_named_with_what_is_there(
    monkeypatch: pytest.MonkeyPatch, table: Family, row: str, there: str
) -> None:
    monkeypatch.setitem(FAMILIES, "bert", table)
    config = shrunk(tiny_model("bert").config)
    found = run_checks(partial(make_model, config), partial(make_batch, config), onnx=False)
    failed = {result.check: result.reason for result in found if result.status == "failed"}
    assert there in failed[row]


def test_the_command_checks_the_families_own_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("deit", "gemma3_text"):
        run_check(model, "", onnx=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert all(line.startswith("✓ ") for line in lines)
    with pytest.raises(ConfigError, match="my_tables"):
        run_check("bert", "my_tables.WRONG", onnx=False)


def test_a_table_of_ones_own_that_is_wrong_ends_with_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "my_tables.py").write_text(
        "from dataclasses import replace\n"
        "from qat_lightning.models.families import FAMILIES\n"
        "WRONG = replace(FAMILIES['bert'], output='outputs')\n"
    )
    words = ("model=bert", "table=my_tables.WRONG", "allow_targets=[my_tables]", "onnx=false")
    ended = call(tmp_path, *words, module="qat_lightning.check_model")
    assert ended.returncode == 1, ended.stderr
    assert "✗ output: 'bert.encoder.layer.0.outputs'" in ended.stdout
    assert "output (BertOutput)" in ended.stdout
    assert "Traceback" not in ended.stderr
