"""Write the exports and the model card of a run, and compare each export with the student."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from qat_lightning.commands.model_comparison import NEAR, Comparison, InFloat64, compare
from qat_lightning.config.builders.exports import build_formats, is_chosen, switch
from qat_lightning.config.schema import Plain, RunConfig
from qat_lightning.data.base import TaskData
from qat_lightning.exporters.base import ExportContext, ExportFormat, path_of
from qat_lightning.io.external_errors import one_line
from qat_lightning.io.files import finite, write_json
from qat_lightning.models.size import size
from qat_lightning.quantization.packing.stored_weight import DivergedError
from qat_lightning.reports.summary import score
from qat_lightning.training.compatibility import names_of

HALF_A_POINT = 0.005
"""How far the metric of an exported model may be from the student's: absolute for a metric in 0 … 1,
relative for a perplexity."""

TIMES = 2.0
"""How much further than the student in float64 an exported model's logits may be from the student's, where the metric is
off: up to there the difference is the student's own rounding, which moves a value on the border between two codes."""

EXPORT, RECORD, CARD = "export", "metrics.json", "README.md"
"""In the run folder: export/metrics.json and export/README.md, beside what the formats write."""


class NotFaithfulError(ValueError):
    """An exported model that does not predict as the student does; its files stay for inspection."""


@dataclass
class Exporter:
    """Writes what `config.export` asks for of a student on the CPU.

    Attributes:
        record: the content of `export/metrics.json`; None where nothing was exported.
    """

    config: RunConfig
    folder: Path
    data: TaskData
    student: nn.Module
    say: Callable[[str, str], None]
    record: Plain | None = None

    def export(self) -> Plain | None:
        """Write each chosen format and `export/metrics.json`; returns `record`. If one format fails, the others are written.

        Raises:
            ValueError: a student that a format cannot write, with the override that leaves the format out.
            NotFaithfulError: an exported model whose metric is more than half a point off, and whose logits are
                further from the student's than rounding explains.
        """
        formats = build_formats(self.config)
        for name in (RECORD, CARD):  # those of an earlier export are wrong if this one ends early
            (self.folder / EXPORT / name).unlink(missing_ok=True)
        if not any(is_chosen(self.config, name) for name in formats):
            return None
        self.student.cpu().float().eval()
        self._float32 = size(self.student).float32
        if names := self.data.label_names:  # a user of the export reads "positive" and not "LABEL_1"
            architecture: Any = self.student.config
            architecture.id2label = dict(enumerate(names))
            architecture.label2id = {name: number for number, name in enumerate(names)}
        written: dict[str, Plain | None] = {}
        failures: list[Exception] = []
        for name, export_format in formats.items():
            written[name] = None
            try:
                written[name] = self._write(name, export_format)
            except DivergedError as error:
                self.say("export", f"nothing, {error}")
                return None
            except Exception as error:
                failures.append(error)
        if any(written.values()):
            self._write_record(written)
        if failures:
            for other in failures[1:]:
                self.say("export", one_line(other))
            raise failures[0]
        return self.record

    def _write_record(self, written: Mapping[str, Plain | None]) -> None:
        versions = [facts.pop("versions", {}) for facts in written.values() if facts]
        self.record = {
            "metric": self.data.metric,
            "float32": self._float32,
            "classes": names_of(self.student.config) if self.data.head.endswith("_classification") else None,
            **written,
            "versions": {name: number for each in versions for name, number in each.items()},
        }
        write_json(self.folder / EXPORT / RECORD, self.record)

    def _write(self, name: str, export_format: ExportFormat) -> Plain | None:
        """Write one format and compare it with the student; None if it is not chosen or does not support the student."""
        folder, path = self.folder / EXPORT, path_of(export_format)
        if not is_chosen(self.config, name):
            if (folder / path).exists():
                self.say(f"export/{path}", "left as an earlier export made it; the card does not mention it")
            return None
        if (reason := export_format.supports(self.student)) is not None:
            self.say(f"export/{path}", f"not written: {reason}")
            return None
        self.say(f"export/{path}", "writing …")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            export_format.write(self.student, folder, ExportContext(self.data.example_batch(2), self.data.processor))
        except DivergedError:
            raise
        except ValueError as error:
            raise type(error)(f"{error}: leave it out with {switch(name, on=False)}") from error
        facts = export_format.describe(folder)
        seen = compare(export_format.load(folder), self.student, self.data, self.config.export.rows)
        self._check(seen, f"export/{path}", switch(name, on=False), getattr(export_format, "exact", False))
        return {
            "bytes": facts["bytes"],
            "ratio": round(self._float32 / facts["bytes"], 3),
            "score": finite(seen.score),
            "student": finite(seen.reference),
            "rows": seen.rows,
            "largest_difference": seen.largest_difference,
            "agreement": seen.agreement,
        } | facts

    def _check(self, seen: Comparison, name: str, remedy: str, exact: bool = False) -> None:
        figures = (
            f"{self.data.metric} {score(seen.score)}, the student {score(seen.reference)}; largest difference of logits"
            f" {seen.largest_difference:.2g}, {seen.agreement:.2%} of predictions equal, rows: {seen.rows}"
        )
        self.say(name, figures)
        if is_as_good(seen) and (seen.agreement == 1 or not exact):
            return
        own = compare(InFloat64(self.student), self.student, self.data, seen.rows)
        if exact or not seen.largest_difference <= TIMES * own.largest_difference:
            raise NotFaithfulError(f"{name} predicts otherwise than the student ({figures}): leave it out: {remedy}")
        self.say(
            name,
            f"that is the student's own rounding: computed in float64 its {self.data.metric} is"
            f" {score(own.score)}, and its logits are up to {own.largest_difference:.2g} off",
        )


def is_as_good(seen: Comparison) -> bool:
    """Return whether the metric is at most half a point from the student's.

    Where it is undefined, as a correlation is for constant predictions, the predictions must agree; the logits as well
    where it is undefined for one of the two alone.
    """
    if math.isfinite(seen.score) and math.isfinite(seen.reference):
        return abs(seen.score - seen.reference) <= HALF_A_POINT * max(1.0, abs(seen.reference))
    both = not (math.isfinite(seen.score) or math.isfinite(seen.reference))
    return seen.agreement >= 1 - HALF_A_POINT and (both or seen.largest_difference <= NEAR)
