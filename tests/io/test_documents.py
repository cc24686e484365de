"""JSON and YAML of others are read within limits, and what exceeds them is refused before it costs much."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from qat_lightning.io.documents import DEEPEST, DocumentError, read_json, read_yaml

# tests/security/corpus.py has the documents that others would write in place of a file of a model or a run


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a":' * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1), "lists and dictionaries within each other"),
        ("1" * 5_000, "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
    ],
    ids=["deep dictionary", "long number", "bytes", "torn"],
)
def test_json(tmp_path: Path, content: str | bytes, words: str) -> None:
    (tmp_path / "x").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DocumentError, match=words):
        read_json(tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "lists and dictionaries within each other"),
        ("x: !!int x", "cannot be read as YAML"),
        ("x: " + "1" * 5_000, "cannot be read as YAML"),
    ],
    ids=["deep", "number", "long number"],
)
def test_yaml(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "x").write_text(content)
    with pytest.raises(DocumentError, match=words):
        read_yaml(tmp_path / "x")


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_what_is_not_a_plain_file_is_not_opened(tmp_path: Path, read) -> None:
    os.mkfifo(tmp_path / "pipe")  # which would be waited for
    for name in ("pipe", "."):
        with pytest.raises(DocumentError, match="is not a plain file"):
            read(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing")


def test_plain_values_are_read(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None, True, "ü ${x}"], "b": {"c": {}}, "d": [[]] * 20}
    (tmp_path / "x").write_text(yaml.safe_dump(content))
    assert read_yaml(tmp_path / "x") == content
    (tmp_path / "x").write_text("")
    assert read_yaml(tmp_path / "x") is None
    (tmp_path / "x").write_text('{"a": [1, 2.5, null, true]}')
    assert read_json(tmp_path / "x") == {"a": [1, 2.5, None, True]}
