"""What a run's files say, as a card needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id

import qat_lightning.data
from qat_lightning.data.base import TaskData
from qat_lightning.io.markdown import code
from qat_lightning.reports.model_card.formatting import Node, class_of
from qat_lightning.reports.summary import student_kind

FILES = {"packed": "packed/", "onnx": "model.onnx"}
"""What may have been exported → where it lies beside the card."""


SITES = {
    "hidden": "MSE of the hidden states (arXiv:2009.12812 §3.3)",
    "attention.scores": "MSE of the attention scores (arXiv:2009.12812 §3.3)",
    "attention.output": "MSE of the attention outputs after LayerNorm (arXiv:2211.11014 §4)",
    "attention.residual": "MSE of the attention outputs before LayerNorm (arXiv:2211.11014 §4)",
    "attention.projection": "MSE of the attention outputs before the residual (arXiv:2302.11812)",
    "attention.context": "MSE of each head's context (arXiv:2211.11014)",
}
"""Where a `FeatureMatchingLoss` loss looks → what it is."""


@dataclass(frozen=True)
class Facts:
    """What the run's files say."""

    folder: Path
    config: Node
    results: Node
    exported: Node

    def at(self, *keys: str) -> Any:
        """A value of the configuration; None where a key is absent."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def is_hub_id(self, place: str) -> bool:
        """`name` or `owner/name`, and no folder that a run from here, or from above the run folder, would have read."""
        try:
            validate_repo_id(place)
        except HFValidationError:
            return False
        return not any((base / place).exists() for base in (Path.cwd(), *self.folder.resolve().parents))

    def named(self, place: str) -> str:
        """A hub id as it is, a folder by its last component."""
        return place if self.is_hub_id(place) else PureWindowsPath(place).name or "local"

    @cached_property
    def base_model(self) -> str | None:
        """What the weights came from; None for random ones."""
        return self.at("model", "path") if self.at("model", "pretrained") is not False else None

    @cached_property
    def model(self) -> str:
        return (
            self.named(self.base_model)
            if self.base_model
            else self.at("model", "architecture", "model_type") or "model"
        )

    @cached_property
    def data(self) -> str:
        return self.named(self.at("data", "path")) if self.at("data", "path") else self.results["task"]

    @cached_property
    def head(self) -> str:
        """By the data's class, looked up by its name among this package's own: nothing is imported for a file's sake."""
        return getattr(qat_lightning.data, class_of(self.at("data") or {}), TaskData).head

    def split(self, name: str) -> str:
        """What the data calls its "train" or "validation" split."""
        return self.at("data", f"{name}_split") or name

    @cached_property
    def taught(self) -> bool:
        return self.at("teacher") != "none"

    @cached_property
    def intervened(self) -> int:
        """Steps with the teacher's signals in place of the student's."""
        return (self.results.get("steps") or {}).get("intervene") or 0

    @cached_property
    def losses(self) -> dict[str, Node]:
        """Those that count."""
        given = (self.at("losses") or {}).items()
        return {name: loss for name, loss in given if loss and loss.get("weight", 1.0) != 0}

    @cached_property
    def weights(self) -> list[tuple[str, Node]]:
        """(parts, quantizer of their weights), of the rules that match something."""
        return [(code(rule["target_modules"]), rule["weight"]) for rule in self._rules if rule.get("weight")]

    @cached_property
    def activations(self) -> list[tuple[str, Node]]:
        """(what, quantizer) of the inputs of parts and the operands of attention's products."""
        inputs = [(code(rule["target_modules"]), rule["input"]) for rule in self._rules if rule.get("input")]
        attention = self.at("quantization", "attention") or {}
        slots = [slot for slot in ("query", "key", "probs", "value") if attention.get(slot)]
        return inputs + [(slot, attention[slot]) for slot in slots]

    @cached_property
    def _rules(self) -> list[Node]:
        rules = (self.at("quantization", "rules") or {}).values()
        return [rule for rule in rules if rule and (not rule.get("optional") or self._has(rule["target_modules"]))]

    def _has(self, parts: str) -> bool:
        """Whether the model has such parts; those of the layers it has, under any name."""
        return parts.startswith("layers.") or any(fnmatchcase(kind, parts) for kind in self.results.get("bits") or {})

    @cached_property
    def forms(self) -> dict[str, Node]:
        """What was exported, each with its figures."""
        return {name: self.exported[name] for name in FILES if self.exported.get(name)}

    @cached_property
    def figures(self) -> Node:
        """metrics.json as the report's tables take it, with what was exported."""
        return {"student": None, **self.results, "export": self.forms}

    @cached_property
    def processor(self) -> str | None:
        """The class of transformers that reads the packed folder's preprocessing, where it has any."""
        packed = self.folder / "export" / FILES["packed"]
        files = {"preprocessor_config.json": "AutoImageProcessor", "tokenizer_config.json": "AutoTokenizer"}
        return next((name for file, name in files.items() if (packed / file).is_file()), None)

    @cached_property
    def methods(self) -> dict[str, str]:
        """Name → source, of the papers' methods that this run is made of."""
        kinds = {class_of(loss) for loss in self.losses.values()}
        sites = {loss.get("site") for loss in self.losses.values()}
        learned = any(class_of(quantizer) == "LSQQuantizer" for _, quantizer in self.weights)
        found = {
            "Teacher Intervention": ("arXiv:2302.11812", bool(self.intervened)),
            "KD-QAT": (
                "arXiv:2211.11014",
                not self.intervened
                and bool(
                    kinds & {"AttentionMapLoss", "WeightedPairLoss"}
                    or sites & {*SITES} - {"hidden", "attention.scores"}
                ),
            ),
            "KDLSQ-BERT": ("arXiv:2101.05938", learned and self.taught),
            "LSQ": ("arXiv:1902.08153", learned and not self.taught),
            "TSLD": ("arXiv:2308.06744", "TokenScaledLoss" in kinds),
        }
        chosen = {name: source for name, (source, applies) in found.items() if applies}
        ternary = self.taught and student_kind(self.results.get("bits")) == "ternary"
        return chosen or ({"TernaryBERT": "arXiv:2009.12812"} if ternary and "attention.scores" in sites else {})
