"""What it was trained on and with, and the commands that give its figures."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from qat_lightning.io import markdown
from qat_lightning.io.documents import read_yaml
from qat_lightning.io.markdown import block, code, text
from qat_lightning.reports import tables
from qat_lightning.reports.model_card.formatting import class_of
from qat_lightning.reports.model_card.run_facts import Facts


def data(facts: Facts) -> Iterator[str]:
    given = facts.at("data") or {}
    path = given.get("path")
    where = "" if path and facts.is_hub_id(path) else " (a local folder)" if path else f" ({code(class_of(given))})"
    lines = [f"Data: {code(facts.data)}{where}" + (f", {code(given['name'])}" if given.get("name") else "")]
    for split in ("train", "validation"):
        limit = given.get(f"{split}_limit")
        used = "all rows" if limit is None else f"at most {limit} rows"
        lines.append(f"{split.capitalize()}: {code(facts.split(split))}, {used}")
    if given.get("max_length"):
        lines.append(f"Tokens in a row: at most {given['max_length']}")
    if facts.at("stages", "train", "keep") == "best":
        lines.append(
            "The weights kept are those that scored best on this validation split: unseen rows may score lower"
        )
    yield "## Data"
    yield "\n".join(f"- {line}" for line in lines)


def training(facts: Facts) -> Iterator[str]:
    results, optimizer = facts.results, facts.at("optimizer") or {}
    yield "## Training"
    yield markdown.table(["stage", "steps", "time", "per step"], tables.stage_rows(results))
    newer = {
        name: number
        for name, number in (facts.exported.get("versions") or {}).items()
        if (results.get("versions") or {}).get(name) != number
    }
    rate, batch = optimizer.get("lr"), facts.at("data", "batch_size")
    lines = {
        "Seed": results.get("seed"),
        "Optimizer": f"{code(class_of(optimizer))}" + (f", learning rate {rate:g}" if isinstance(rate, float) else ""),
        "Rows in a batch": batch,
        "Precision": facts.at("trainer", "precision"),
        "Trained with": ", ".join(text(f"{name} {number}") for name, number in (results.get("versions") or {}).items()),
        "Exported with": ", ".join(text(f"{name} {number}") for name, number in newer.items()),
        "SHA-256 of the student's tensors": code(results["student_hash"]) if results.get("student_hash") else None,
    }
    yield "\n".join(f"- {name}: {value}" for name, value in lines.items() if value not in (None, "", "``"))


def again(facts: Facts) -> Iterator[str]:
    """The commands that give these figures."""
    if facts.forms:
        yield "## To recompute"
        yield "`DIR` is the run folder; this card lies in `DIR/export`."
        yield block("bash", [f"python -m qat_lightning.evaluate run=DIR model={name}" for name in facts.forms])
    place = facts.folder / "overrides.yaml"
    given = read_yaml(place) if place.is_file() else None
    if not isinstance(given, list):
        return
    shown = [_without_folders(facts, str(override)) for override in given if not str(override).startswith("hydra.")]
    yield "The whole run:"
    yield block("bash", [shlex.join(["python", "-m", "qat_lightning", *shown])])
    if any(override not in given for override in shown):
        yield "Folders of the machine that it ran on are named by their last component."


def _without_folders(facts: Facts, override: str) -> str:
    """`data.path=/home/me/rte` → `data.path=rte`."""
    key, _, value = override.partition("=")
    if "/" not in value and "\\" not in value:
        return override
    value = value.strip("'\" ")
    if not value.startswith(("[", "{")):
        return f"{key}={facts.named(value)}"
    inner = r"""[^\s,:=\[\]{}'"]*[/\\][^,:=\[\]{}'"]*"""
    return f"{key}={re.sub(inner, lambda found: facts.named(found[0].strip()), value)}"
