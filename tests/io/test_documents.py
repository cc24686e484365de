"""JSON and YAML of others are read within limits, and what exceeds them is refused before it costs much."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from qat_lightning.io.documents import DEEPEST, LARGEST_JSON, LARGEST_YAML, DocumentError, read_json, read_yaml

GROWING = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGING = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 9))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 100_000, "cannot be read as JSON"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "lists and dictionaries within each other"),
        ('{"a":' * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1), "lists and dictionaries within each other"),
        ("1" * 5_000, "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        (b" " * (LARGEST_JSON + 1), "more than the 8388608 that are read"),
    ],
    ids=["bottomless", "deep list", "deep dictionary", "long number", "bytes", "torn", "large"],
)  # fmt: skip
def test_json(tmp_path: Path, content: str | bytes, words: str) -> None:
    (tmp_path / "x").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DocumentError, match=words):
        read_json(tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 5_000, "cannot be read as YAML"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "lists and dictionaries within each other"),
        ("x: &a [*a]", "cannot be read as YAML"),
        (GROWING, "more than 20000 values"),
        (MERGING, "has the tag 'tag:yaml.org,2002:merge'"),
        ("x: !!python/name:os.system ''", "has the tag"),
        ("x: !!int x", "cannot be read as YAML"),
        ("x: " + "1" * 5_000, "cannot be read as YAML"),
        ("#" * (LARGEST_YAML + 1), "more than the 1048576 that are read"),
    ],
    ids=["bottomless", "deep", "itself", "growing", "merging", "object", "number", "long number", "large"],
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
