"""Links, paths, commands and overrides in the documents work."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qat_lightning.config.command_line import put_debug_last
from qat_lightning.config.schema import CONF, BenchConfig, resolve
from qat_lightning.config.validation import check

Word = re.Match[str]
ROOT = Path(__file__).parents[1]
PAPERS = ROOT / "docs" / "papers.md"
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()} | {"data/augmentation"}
KEYS = GROUPS | {"teacher", "teacher_precision", "teacher_cache", "compile", "seed", "threads", "export"}
SCORED = ("student", "teacher", "packed", "onnx")
"""Values of `model=` that `qat_lightning.evaluate` takes."""
WRITTEN = ("export/", "checkpoints/", "logs/", "evaluation/")
"""Folders of a run, not of the repository."""

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"[\w./-]+/[\w.-]+\.(py|md|yaml|yml|json|ipynb)")
LISTED = re.compile(r"`([a-z_/]+)=` `([a-z0-9_ \n]+)`")
OVERRIDE = re.compile(r"(?P<mark>[~+]*)(?P<key>[a-z_/]+(?:\.[\w*]+)*)(?:=(?P<value>.+))?")
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of headings."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each command line in the code blocks."""
    for block in FENCE.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith(("python -m qat_lightning", "make ")):
                yield shlex.split(line, comments=True)


def override_spans(text: str) -> Iterator[list[Word]]:
    """Yield the overrides of each code span that consists of overrides, once for each combination of a,b."""
    for span in SPAN.findall(text.replace(r"\|", "|")):
        words = [OVERRIDE.fullmatch(word) for word in (shlex.split(span) if "'" in span else span.split())]
        if words and all(word and word["key"].split(".")[0] in KEYS and _is_complete(word) for word in words):
            yield from (list(each) for each in itertools.product(*map(_alternatives, filter(None, words))))


def _is_complete(word: Word) -> bool:
    return bool(word["value"]) or word["mark"] == "~" or "." in word["key"]


def _alternatives(word: Word) -> list[Word]:
    """Return one override for each value of a sweep; commas within brackets do not separate values."""
    values = (word["value"] or "").split(",")
    if len(values) == 1 or re.search(r"[\[{]", word["value"]):
        return [word]
    return list(filter(None, (OVERRIDE.fullmatch(f"{word['mark']}{word['key']}={value}") for value in values)))


@cache
def composed(words: tuple[str, ...] = (), name: str = "config") -> DictConfig:
    """Compose a configuration, or with the path of a choice the part that it gives."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides=list(words))


def choices(word: Word) -> list[str]:
    """Return the names that `group=name` or `group=[one,two]` chooses."""
    return re.findall(r"[^\s,\[\]]+", word["value"] or "") if word["key"] in GROUPS else []


def missing_choices(text: str) -> list[str]:
    named = [(word["key"], name) for word in itertools.chain(*override_spans(text)) for name in choices(word)]
    named += [(group, name) for group, names in LISTED.findall(text) if group in GROUPS for name in names.split()]
    found = [pair for pair in named if not (CONF / pair[0] / f"{pair[1]}.yaml").is_file()]
    return [f"{group}={name}" for group, name in found if group != "model" or name not in SCORED]


def refused_overrides(text: str) -> list[str]:
    """Return the overrides whose key does not exist, or whose value has another type, with the reason."""
    found = []
    for words in override_spans(text):
        groups = {word["key"]: choices(word)[0] for word in words if choices(word)}
        found += [_objection(word, groups) for word in words if not choices(word) and "+" not in word["mark"]]
    return list(filter(None, found))


def _objection(word: Word, groups: dict[str, str]) -> str | None:
    reasons = []
    for config in _contexts(word["key"].split(".")[0], groups):
        reasons.append(_reason(config, word))
        if reasons[-1] is None:
            return None
    return reasons[0]


def _contexts(group: str, groups: dict[str, str]) -> Iterator[DictConfig]:
    """Yield the span's own choice of the group; else the default configuration, and then all choices."""
    if group in groups:
        yield composed(name=f"{group}/{groups[group]}")
    else:
        yield composed()
        yield from (composed(name=f"{group}/{file.stem}") for file in sorted((CONF / group).glob("[a-z]*.yaml")))


def _reason(config: DictConfig, word: Word) -> str | None:
    parent, _, name = word["key"].rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if not isinstance(node, DictConfig) or name not in list(node.keys()):
        return f"{word[0]}: there is no such key"
    try:
        if word["value"]:  # the cached configuration keeps the value, which matters to no other check of keys and types
            value = OverridesParser.create().parse_override(f"key={word['value']}").value()
            OmegaConf.update(config, word["key"], value, merge=False)
    except OmegaConfBaseException as error:
        return f"{word[0]}: {error}"
    return None


@every_page
def test_every_link_and_path_leads_to_a_file(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            place = (page.parent / file).resolve() if file else page
            assert place.exists(), target
            assert not anchor or anchor in anchors(place), target
    for path in SPAN.findall(prose(page)):
        if PATH.fullmatch(path) and not path.startswith(WRITTEN):
            assert (ROOT / path).exists() or (ROOT / "tests" / path).exists(), path


@every_page
def test_every_command_composes(page: Path) -> None:
    for program, *words in commands(page):
        given = tuple(
            word for word in put_debug_last(words[2:]) if not word.startswith(("run=", "input=", "output=", "--"))
        )
        if program == "make":
            assert set(words) <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        elif words[1] == "qat_lightning.bench":
            resolve(composed(given, "bench"), BenchConfig)
        elif words[1] == "qat_lightning.check_model":
            assert {word.partition("=")[0] for word in given} <= {"model", "table", "onnx"}
        elif "allow_targets=[my_package]" in words:
            resolve(composed(tuple(word for word in given if not word.startswith("allow_targets="))))
        elif words[1] == "qat_lightning":
            check(resolve(composed(given)))
        else:  # of a finished run
            composed(("model=bert_base", "data=rte", *(word for word in given if not word.startswith("model="))))


@every_page
def test_every_choice_and_override_exists(page: Path) -> None:
    assert missing_choices(prose(page)) + refused_overrides(prose(page)) == []


def test_every_choice_of_a_method_is_in_papers() -> None:
    """A choice that docs/papers.md does not name has no documentation."""
    words = list(itertools.chain(*override_spans(prose(PAPERS))))
    for group in ("experiment", "losses", "quantization", "intervention_schedule", "intervention", "callbacks"):
        named = {name for word in words if word["key"] == group for name in choices(word)}
        there = {path.stem for path in (CONF / group).glob("[a-z]*.yaml")}
        assert there - named - {"hidden", "all", "none", "early_stopping"} == set(), group


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("`losses.hidden.weight=2`, `report.md`, `data.path`, `losses=ternarybert losses.scores.weight=1,2`", ""),
        ("`losses.hidden.wieght=1`", "losses.hidden.wieght"),
        ("`stages.train.max_steps=few`", "max_steps"),
        ("`intervention_schedule=` `gradual\n  sideways`", "intervention_schedule=sideways"),
    ],
)
def test_the_check_finds_a_wrong_override(text: str, wrong: str) -> None:
    found = missing_choices(text) + refused_overrides(text)
    assert bool(found) == bool(wrong)
    assert wrong in "".join(found)
