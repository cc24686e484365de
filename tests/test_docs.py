"""What the documents name exists: choices of configuration, and each override, with a value that is accepted."""

from __future__ import annotations

import copy
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from qat_lightning.commands.evaluate import MODELS
from qat_lightning.config.schema import CONF, ConfigError, resolve
from qat_lightning.config.validation import check

Line = tuple[str, ...]
"""Words of the command line."""
ROOT = Path(__file__).parents[1]
PAPERS = ROOT / "docs" / "papers.md"
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
CONTEXTS = (
    (),
    ("quantization=lsq_w2a8",),
    ("model=bert_base", "data=rte"),
)
"""What an override may need; a table's row may say more."""
GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()} | {"data/augmentation"}
KEYS = GROUPS | {
    "teacher", "teacher_precision", "teacher_cache", "compile", "activation_checkpointing", "seed", "threads"
}  # fmt: skip

MISSING = (InterpolationToMissingValueError, MissingMandatoryValue)
"""A choice that asks for more, as data=text does, is not judged by its values."""

SPAN = re.compile(r"`([^`]+)`")
CHOICE = re.compile(r"(?<![\w./=])\+?([a-z_/]+)=([\w,|\[\]]+)")
LISTED = re.compile(r"`([a-z_/]+)=` `([a-z0-9_ \n]+)`")
OVERRIDE = re.compile(r"[~+]?([a-z_/]+)((?:\.[\w*]+)*)(?:=(.+))?")


# --- choices --------------------------------------------------------------------------------------------------------


def choices(text: str) -> Iterator[tuple[str, str]]:
    """(group, choice) of all that is written as group=choice, group=one,two or, in README, `group=` `one two`."""
    for group, given in [*CHOICE.findall(text), *LISTED.findall(text)]:
        if group in GROUPS:
            yield from ((group, name) for name in re.split(r"[\s,|\[\]]+", given) if name)


def missing_choices(text: str) -> list[str]:
    found = choices(text)
    return [f"{group}={name}" for group, name in found if name.islower() and not exists(group, name)]


def exists(group: str, name: str) -> bool:
    scored = group == "model" and name in MODELS  # of qat_lightning.evaluate
    return scored or (CONF / group / f"{name}.yaml").is_file()


# --- overrides ------------------------------------------------------------------------------------------------------


@cache
def configuration(words: Line) -> DictConfig:
    """Composed once; not to be changed."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(words))


def command_lines(cell: str) -> list[Line]:
    """The spans in code font that are words of the command line."""
    lines = []
    for span in SPAN.findall(cell.replace(r"\|", "|")):
        words = span.split()
        parts = [OVERRIDE.fullmatch(word) for word in words]
        dotted = len(words) == 1 and parts[0] is not None and bool(parts[0][2])
        told = all(part and (part[3] or word.startswith("~")) for part, word in zip(parts, words, strict=True))
        if (told or dotted) and all(part and part[1] in KEYS for part in parts):
            lines.append(tuple(words))
    return lines


def alternatives(words: Line) -> list[Line]:
    """Each run of a sweep: a,b is a and then b; commas within brackets part nothing."""
    each = [
        [word] if re.search(r"[\[{]", word) else [word.split("=")[0] + end for end in _ends(word)] for word in words
    ]
    return list(itertools.product(*each))


def _ends(word: str) -> list[str]:
    return [f"={value}" for value in word.split("=", 1)[1].split(",")] if "=" in word else [""]


def is_choice(word: str) -> bool:
    return word.split("=")[0].lstrip("+") in GROUPS | {"teacher"} and "=" in word


def key_of(word: str) -> str:
    return word.split("=")[0].lstrip("~+")


def context_of(words: Line, row: Sequence[Line] = ()) -> Line | None:
    """The choices with which all keys of a command line are there; None where there are none."""
    needed = [key_of(word) for word in words if not is_choice(word) and not word.startswith("+")]
    for context in (*CONTEXTS, *(tuple(filter(is_choice, line)) for line in row)):
        chosen = {key_of(word): word for word in (*context, *filter(is_choice, words))}
        if (not needed and len(chosen) < 2) or all(has(configuration(tuple(chosen.values())), key) for key in needed):
            return tuple(chosen.values())
    return None


def has(config: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and name in list(node.keys())


def edited(context: Line, lines: Sequence[Line]) -> DictConfig:
    """The composed configuration with all of these overrides."""
    config = copy.deepcopy(configuration(context))
    for word in itertools.chain(*lines):
        key, (_, _, value) = key_of(word), word.partition("=")
        if word.startswith("~"):
            node = OmegaConf.select(config, key.rpartition(".")[0])
            OmegaConf.set_struct(node, False)
            del node[key.rpartition(".")[2]]
        elif value and not is_choice(word) and value != "FOLDER":
            OmegaConf.update(config, key, _parsed(value), force_add=word.startswith("+"))
    return config


def objections(context: Line, lines: Sequence[Line], values: bool) -> list[str]:
    """What is wrong with these overrides, first together, as one check takes a third of a second, then each alone."""
    try:
        config = edited(context, lines)
        if values and not OmegaConf.missing_keys(config):
            check(resolve(config))
    except (ConfigError, OmegaConfBaseException) as error:
        if len(lines) > 1:
            return [problem for line in lines for problem in objections(context, [line], values)]
        if not isinstance(error, MISSING):
            return [f"{' '.join(lines[0])}: {' '.join(str(error).split())[:200]}"]
    return []


def together(lines: Sequence[Line]) -> list[list[Line]]:
    """Heaps of command lines that set different things."""
    heaps: list[list[Line]] = []
    for line in lines:
        free = (
            heap
            for heap in heaps
            if not any(_clash(key_of(a), key_of(b)) for b in itertools.chain(*heap) for a in line)
        )
        heap = next(free, None)
        if heap is None:
            heaps.append(heap := [])
        heap.append(tuple(word for word in line if not is_choice(word)))
    return heaps


def _clash(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _parsed(value: str) -> Any:
    return OverridesParser.create().parse_override(f"key={value}").value()


def wrong_overrides(text: str, values: bool) -> list[str]:
    """What is wrong with the command lines in the tables of a text: their keys and types, or their values as well."""
    problems, by_context = [], defaultdict(dict)
    for line in text.splitlines():
        row = command_lines(line) if line.startswith("|") else []
        for words in itertools.chain(*map(alternatives, row)):
            context = context_of(words, row)
            if context is None:
                problems.append(f"{' '.join(words)}: there is no such key")
            elif len(words) > 1 or not is_choice(words[0]):  # whether a choice is there is checked without composing
                by_context[context][words] = None
    for context, lines in by_context.items():
        for heap in together(list(lines)):
            problems += objections(context, heap, values)
    return problems


# --- the documents --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_choice_named_exists(page: Path) -> None:
    assert len(list(choices(page.read_text()))) > 5
    assert missing_choices(page.read_text()) == []


@pytest.mark.parametrize("values", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["keys", "values"])
def test_every_override_in_a_table_is_accepted(values: bool) -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert len({line for row in text.splitlines() if row.startswith("|") for line in command_lines(row)}) > 100
    assert wrong_overrides(text, values) == []


def test_every_choice_of_a_method_is_in_papers() -> None:
    """Else the one table of everything is not one."""
    text = PAPERS.read_text()
    for group in ("experiment", "losses", "quantization", "intervention_schedule", "intervention", "callbacks"):
        named = {name for found, name in choices(text) if found == group}
        there = {path.stem for path in (CONF / group).glob("[a-z]*.yaml")}
        between = {f"lsq_w{bits}a8" for bits in range(4, 8)}  # "lsq_w3a8 … lsq_w8a8"
        assert there - named - between - {"hidden", "all", "none", "early_stopping"} == set(), group


# --- the checker ----------------------------------------------------------------------------------------------------


def test_the_check_sees_a_choice_that_is_not_there() -> None:
    assert missing_choices("python -m qat_lightning +experiment=quickstart data=cola,rte data.path=x data=FOLDER") == []
    assert missing_choices(
        "`losses=ternarybert`, `losses=ternary` `+experiment=fast callbacks=[analysis,none,other]`"
    ) == [
        "losses=ternary",
        "experiment=fast",
        "callbacks=other",
    ]
    assert missing_choices("`intervention_schedule=` `gradual\n  sideways`") == ["intervention_schedule=sideways"]


def test_the_check_sees_an_override_that_is_refused() -> None:
    """One row by one: each is refused, and none hides the next."""
    rows = {
        "| `losses.hidden.weight=2` |": None,
        "| `losses.hidden.wieght=1` |": "losses.hidden.wieght=1: there is no such key",
        "| `quantization.weight.forn` |": "quantization.weight.forn: there is no such key",
        "| `~losses.sound` |": "~losses.sound: there is no such key",
        "| `quantization=lsq_w2a8`: `quantization.weight.initialization=guess` |": "guess",
        "| `losses.output.site=attention.exit` |": "unknown site",
        "| `losses=attention_map losses.map.temperature=0` |": "must be positive",
        "| `intervention=output intervention_schedule=map` |": "schedule names intervention",
        "| `stages.train.max_steps=few` |": "few",
    }
    told = wrong_overrides("\n".join(rows), values=True)
    assert len(told) == len(rows) - 1
    for words in filter(None, rows.values()):
        assert any(words in problem for problem in told), words


def test_the_check_takes_a_command_line_for_one() -> None:
    cell = r"`losses.hidden.weight=0.5`, `quantization.weight.parametrization`, `report.md`, `data.path`, `-m`, `count=\"a\"`"
    assert command_lines(cell) == [
        ("losses.hidden.weight=0.5",),
        ("quantization.weight.parametrization",),
        ("data.path",),
    ]
    assert alternatives(("seed=1,2", "losses.map.layers=[[0,0],[1,1]]")) == [
        ("seed=1", "losses.map.layers=[[0,0],[1,1]]"),
        ("seed=2", "losses.map.layers=[[0,0],[1,1]]"),
    ]
    lines = [("data.seed=1", "losses.hidden.weight=1"), ("~losses.hidden",), ("losses.scores.weight=1",)]
    assert together(lines) == [[lines[0], lines[2]], [lines[1]]]
