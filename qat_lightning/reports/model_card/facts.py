"""Read from the files of a run what its model card says."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id

from qat_lightning.reports.summary import student_kind
from qat_lightning.reports.tables import exports

INTERVENTIONS = {"attention.projection": "TI-O", "attention.context": "TI-C", "attention.probs": "TI-M"}
"""Signal that the teacher replaces → the intervention's name in arXiv:2302.11812 §3."""

Node = Mapping[str, Any]
"""A part of a configuration or of metrics.json."""


class Facts:
    """The content of a run folder's files: `config` is config.yaml, `results` metrics.json, `exported` export/metrics.json.

    `overrides` is the list in overrides.yaml, empty if that is missing.
    """

    def __init__(self, folder: Path, config: Node, results: Node, exported: Node, overrides: list[str]) -> None:
        self.folder, self.config, self.results, self.exported, self.overrides = (
            folder, config, results, exported, overrides
        )  # fmt: skip
        path = self.at("model", "path") if self.at("model", "pretrained") is not False else None
        self.base_model: str | None = path  # None for random weights
        self.model: str = self.public_name(path) if path else self.at("model", "architecture", "model_type") or "model"
        data = self.at("data", "path")
        self.data: str = self.public_name(data) if data else results["task"]
        self.head: str = results.get("head") or "text_classification"  # a `qat_lightning.data.base.Head`
        self.distilled = self.at("teacher") != "none"
        self.intervention_steps: int = (results.get("steps") or {}).get("intervene") or 0
        self.quantizers: list[Node] = results.get("quantizers") or []
        self.losses: dict[str, Node] = results.get("losses") or {}
        self.exports = exports({"export": exported})

    def at(self, *keys: str) -> Any:
        """Return a value of the configuration; None if a key is missing."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def class_of(self, *keys: str) -> str:
        """Return the name of the class that a node of the configuration creates, or ""."""
        return str(self.at(*keys, "_target_") or "").rpartition(".")[2]

    def is_hub_id(self, place: str) -> bool:
        """Return whether `place` is a hub id, and not a folder that a run from here or above the run folder would read."""
        try:
            validate_repo_id(place)
        except HFValidationError:
            return False
        return not any((base / place).exists() for base in (Path.cwd(), *self.folder.resolve().parents))

    def public_name(self, place: str) -> str:
        """Return a hub id unchanged, and of a folder its last component."""
        return place if self.is_hub_id(place) else PureWindowsPath(place).name or "local"

    def split(self, name: str) -> str:
        """Return the data set's own name of its "train" or "validation" split."""
        return self.at("data", f"{name}_split") or name

    @cached_property
    def processor(self) -> str | None:
        """The class of transformers that reads the packed folder's preprocessing; None without preprocessing."""
        packed = self.folder / "export" / "packed"
        files = {"preprocessor_config.json": "AutoImageProcessor", "tokenizer_config.json": "AutoTokenizer"}
        return next((name for file, name in files.items() if (packed / file).is_file()), None)

    @cached_property
    def methods(self) -> dict[str, str]:
        """Name → source of the papers' methods that this run consists of."""
        sites = {site for loss in self.losses.values() for site in loss["sites"]}
        papers = {paper for loss in self.losses.values() for paper in loss["papers"]}
        learned = any(row["scale"] == "learned" for row in self.quantizers if row["tensor"] == "weights")
        attention = any(site.startswith("attention.") for site in sites - {"attention.scores"})
        applies = {
            ("Teacher Intervention", "arXiv:2302.11812"): bool(self.intervention_steps),
            ("KD-QAT", "arXiv:2211.11014"): attention and not self.intervention_steps,
            ("KDLSQ-BERT", "arXiv:2101.05938"): learned and self.distilled,
            ("LSQ", "arXiv:1902.08153"): learned and not self.distilled,
            ("TSLD", "arXiv:2308.06744"): "2308.06744" in papers,
        }
        methods = dict(method for method, used in applies.items() if used)
        ternary = self.distilled and student_kind(self.results) == "ternary"
        return methods or ({"TernaryBERT": "arXiv:2009.12812"} if ternary and "attention.scores" in sites else {})

    @cached_property
    def interventions(self) -> list[tuple[str | None, list[str], Any, str | None]]:
        """(name in the paper, replaced sites, layers, share of the steps) of each intervention, in the schedule's order."""
        schedule, nodes = self.at("intervention_schedule") or {}, self.at("intervention") or {}
        shares = schedule.get("shares") or {}
        total, found = sum(shares.values()), []
        for name in shares or schedule.get("names") or nodes:
            node = nodes.get(name) or {}
            sites = list(node.get("replace") or [])
            known = INTERVENTIONS.get(sites[0]) if len(sites) == 1 else None
            layers = node.get("layers", node.get("at"))
            found.append((known, sites, layers, f"{shares[name]}/{total}" if len(shares) > 1 else None))
        return found
