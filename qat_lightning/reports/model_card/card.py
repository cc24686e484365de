"""The model card of an export: `export/README.md`, written from the run's own files alone."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard

from qat_lightning.io.documents import read_json, read_yaml
from qat_lightning.io.files import write_text
from qat_lightning.io.screen import printable
from qat_lightning.reports.model_card.bits import bits
from qat_lightning.reports.model_card.metadata import metadata
from qat_lightning.reports.model_card.method import method
from qat_lightning.reports.model_card.results import results
from qat_lightning.reports.model_card.run_facts import Facts
from qat_lightning.reports.model_card.training import again, data, training
from qat_lightning.reports.model_card.usage import heading, loading


def write_card(folder: Path) -> Path:
    """Write `export/README.md` of a run folder; returns its path.

    Read are `config.yaml`, `metrics.json`, `overrides.yaml` and `export/metrics.json`, and which files the packed folder
    has. Nothing is asked of the hub; folders of this machine are named by their last component alone.

    Raises:
        ValueError: a folder without one of these files (`overrides.yaml` may be absent).
    """
    facts = Facts(
        folder,
        read_yaml(_there(folder, "config.yaml", "python -m qat_lightning hydra.run.dir=DIR")),
        read_json(_there(folder, "metrics.json", "finish the run: the same command with hydra.run.dir=DIR goes on")),
        read_json(_there(folder, "export/metrics.json", "python -m qat_lightning.export run=DIR")),
    )
    sections = [heading, loading, results, method, bits, data, training, again]
    body = "\n\n".join(block for section in sections for block in section(facts) if block)
    path = folder / "export" / "README.md"
    write_text(path, printable(str(ModelCard(f"---\n{metadata(facts).to_yaml()}\n---\n\n{body}\n"))))
    return path


def _there(folder: Path, name: str, remedy: str) -> Path:
    place = folder / name
    if not place.is_file():
        raise ValueError(f"{folder} holds no {name}, so nothing can be said in a card: {remedy}")
    return place
