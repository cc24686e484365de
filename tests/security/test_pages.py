"""What others wrote is text in report.md and the model card: no name changes how the page is built.

Each page is read by a parser of Markdown; what it is built of (headings, tables, links, HTML) must not depend on the names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from qat_lightning.analysis.result_files import write_spectra
from qat_lightning.io.markdown import block, code, table, text
from qat_lightning.reports.plots import training_curves
from tests.reports import test_model_card as test_card
from tests.reports import test_report
from tests.security.hostile import PAGES, STRINGS, controls

PLAIN, PLAIN_PATH = "a good name", "some/good name"
HOSTILE = PAGES | STRINGS
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def built(page: str) -> list[str]:
    """The kinds of what a page consists of, in order, without the texts."""
    kinds = []
    for token in PARSER.parse(page):
        for part in token.children or [token]:
            if part.type not in ("text", "text_special", "entity"):
                kinds.append(f"{part.type} {part.tag} {part.attrs or ''}")
    return kinds


def report(folder: Path, name: str) -> str:
    """All that a report takes from outside, so named."""
    (folder / "overrides.yaml").write_text(yaml.safe_dump([f"data.path={name}"]))
    write_spectra(folder, {"teacher": [[1.0]], name: [[2.0]]}, name)
    packed = copy.deepcopy(test_card.EXPORTED["packed"]) | {
        "full_precision": [name],
        "unquantized_dtype": name,
        "path": name,
        "student": 0.5575,
    }
    results = test_report.RESULTS | {
        "experiment": name, "task": name, "metric": name, "bits": {name: 2, "head": 32}, "student_hash": name,
        "versions": {name: name}, "export": {"packed": packed},
        "teacher_cache": {"found": 1, "computed": 1, "folder": name, "bytes": 1},
    }  # fmt: skip
    drawn = test_report.draw_sections(folder, results, {}, {"labels": torch.zeros(1)})
    return test_report.write_report(folder, results, drawn).read_text(encoding="utf-8")


def card(folder: Path, name: str) -> str:
    """All that a model card takes from outside, so named; its body."""
    config = test_card.composed(*test_card.TEXT)
    config["model"]["path"] = config["data"]["path"] = config["data"]["name"] = name
    config["data"]["train_split"] = config["data"]["validation_split"] = name
    config["optimizer"]["_target_"] = name
    results = {"experiment": name, "task": name, "metric": name, "bits": {name: 2, "head": 32}}
    results |= {"student_hash": name, "versions": {name: name}}
    row = {"kind": name, "source": name, "scale": name}
    row |= {"bits": 2, "levels": 3, "granularity": "per_tensor", "clip": None}
    results["quantizers"] = [row | {"tensor": "weights", "parts": [name], "group_size": None}]
    loss = {"class": name, "what": name, "papers": [], "sites": [name], "settings": {name: name}, "weight": 1.0}
    results["losses"] = {name: loss}
    exported = {name: copy.deepcopy(value) for name, value in test_card.EXPORTED.items()}
    exported["packed"]["full_precision"] = exported["onnx"]["inputs"] = exported["onnx"]["outputs"] = [name]
    exported["versions"] = {f"{name}2": name}
    written = test_card.card(folder, (f"data.path={name}",), results, exported, config=config)
    assert written.startswith("---\nlibrary_name")
    return written.partition("\n---\n")[2]


WRITTEN: dict[str, Callable[[Path, str], str]] = {"report.md": report, "the model card": card}


@cache
def plain(page: str, name: str) -> list[str]:
    """What a page with a harmless name is built of."""
    with TemporaryDirectory() as folder:
        return built(WRITTEN[page](Path(folder), name))


@pytest.mark.parametrize("page", WRITTEN)
@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_changes_a_page(page: str, name: str, tmp_path: Path) -> None:
    written = WRITTEN[page](tmp_path, HOSTILE[name])
    assert built(written) == plain(page, PLAIN_PATH if set(HOSTILE[name]) & {"/", "\\"} else PLAIN)
    assert controls(written) == []
    assert "://evil" not in "".join(part.content for part in PARSER.parse(written) if part.type == "html_block")


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_changes_the_block_that_the_hub_reads(name: str, tmp_path: Path) -> None:
    card(tmp_path, HOSTILE[name])
    place = tmp_path / "export" / "README.md"
    found = ModelCard.load(place).data.to_dict()
    assert set(found) == {"library_name", "tags", "pipeline_tag", "metrics", "model-index"}
    assert all(controls(value) == [] for value in _strings(found))
    assert "\nlicense:" not in place.read_text(encoding="utf-8").partition("\n---\n")[0]


def _strings(node: Any) -> list[str]:
    children = [*node, *node.values()] if isinstance(node, dict) else node if isinstance(node, list) else []
    return [node] if isinstance(node, str) else [word for child in children for word in _strings(child)]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_text_is_one_line_of_text(name: str) -> None:
    for page in (text(HOSTILE[name]), f"x {text(HOSTILE[name])} y", f"# {text(HOSTILE[name])}"):
        kinds = {kind.split()[0] for kind in built(page)}
        assert kinds <= {"paragraph_open", "paragraph_close", "heading_open", "heading_close"}
    assert [kind.split()[0] for kind in built(code(HOSTILE[name]))] == [
        "paragraph_open",
        "code_inline",
        "paragraph_close",
    ]


def test_a_text_reads_as_it_was_written() -> None:
    for words in ("a_b", "<b>a</b> & *b* `c` _d_ [e](f) ~~g~~ $h$", "naïve Ünïcode", "https://a.example", "a@b"):
        assert "".join(part.content for part in PARSER.parseInline(text(words))[0].children or []) == words


def test_a_bar_stays_in_its_cell() -> None:
    rows = PARSER.parse(table(["a", "b"], [[text("x|y"), code("x|y")]]))
    cells = [token for token in rows if token.type == "inline"][2:]
    assert [cell.content for cell in cells] == ["x|y", "`x|y`"]


def test_no_line_ends_a_block_of_code() -> None:
    (fence,) = PARSER.parse(block("bash", ["a", "````\nevil\n```"]))
    assert (fence.type, fence.content) == ("fence", "a\n````\nevil\n```\n")


def test_a_metric_named_like_a_formula_is_drawn() -> None:
    figure = training_curves([], r"$\evil{$", 0.5, 0.4)
    figure.draw_without_rendering()
    assert any(axes.get_ylabel().startswith(r"$\evil{$") for axes in figure.axes)
