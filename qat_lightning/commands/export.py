"""What a run hands over: a packed folder, an ONNX file, a model card; each checked against the student before it counts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from torch import nn

from qat_lightning.commands.model_comparison import NEAR, Comparison, InFloat64, compare
from qat_lightning.config.schema import Plain, RunConfig, UnquantizedDtype
from qat_lightning.data.base import TaskData
from qat_lightning.exporters.onnx.exporter import OnnxError, export_onnx
from qat_lightning.exporters.onnx.runtime import OnnxModel
from qat_lightning.exporters.packed.manifest import PARTS, WEIGHTS
from qat_lightning.exporters.packed.reader import load_packed
from qat_lightning.exporters.packed.writer import write_packed
from qat_lightning.io.external_errors import one_line
from qat_lightning.io.files import finite, write_json
from qat_lightning.models.module_paths import family
from qat_lightning.models.size import size
from qat_lightning.quantization.packing.stored_weight import DivergedError
from qat_lightning.reports.summary import score
from qat_lightning.training.compatibility import names_of

HALF_A_POINT = 0.005
"""How far the metric of an exported model may be from the student's: of one that lies in 0 … 1; of a perplexity, as a
share of it."""

TIMES = 2.0
"""How much further than the student in float64 an exported model's logits may be from the student's, where the metric is
off: so far they are the student's own rounding. What lies on the border between two codes falls to either side."""

EXPORT, PACKED, ONNX, RECORD, CARD = "export", "packed", "model.onnx", "metrics.json", "README.md"
"""In the run folder: export/packed, export/model.onnx, export/metrics.json, export/README.md."""


class NotFaithfulError(ValueError):
    """An exported model that does not do as well as the student; what was written of it is left to be looked at."""


@dataclass
class Exporter:
    """Writes what `config.export` asks for of a student on the CPU.

    Args:
        folder: the run folder.
        say: takes the subject of a line for the terminal, and the rest of it.

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
        """Write each form and `export/metrics.json`; returns `record`. A form that fails does not cost the other one.

        Raises:
            ValueError: a model that cannot be exported, with the override that leaves that form out.
            NotFaithfulError: an exported model whose metric is more than half a point off, and whose logits are
                further from the student's than rounding explains.
        """
        wanted = self.config.export
        for name in (RECORD, CARD):  # of an earlier export: what they tell is no longer so, should this one end early
            (self.folder / EXPORT / name).unlink(missing_ok=True)
        if not (wanted.packed or wanted.onnx):
            return None
        self.student.cpu().float().eval()
        self._float32 = size(self.student).float32
        self._name_classes()
        forms: dict[str, Plain | None] = {}
        failures: list[Exception] = []
        for form, name, make in (("packed", PACKED, self._packed), ("onnx", ONNX, self._onnx)):
            forms[form] = None
            try:
                if getattr(wanted, form):
                    forms[form] = make()
                elif (self.folder / EXPORT / name).exists():
                    self.say(f"export/{name}", "left as an earlier export made it; the card does not mention it")
            except DivergedError as error:
                self.say("export", f"nothing, {error}")
                return None
            except Exception as error:
                failures.append(error)
        if any(forms.values()):
            self._write_record(forms)
        if failures:
            for other in failures[1:]:
                self.say("export", one_line(other))
            raise failures[0]
        return self.record

    def _write_record(self, forms: Mapping[str, Plain | None]) -> None:
        self.record = {
            "metric": self.data.metric,
            "float32": self._float32,
            "classes": names_of(self.student.config) if self.data.head.endswith("_classification") else None,
            **forms,
            "versions": {name: version(name) for name in ("onnx", "onnxruntime", "onnxscript")},
        }
        write_json(self.folder / EXPORT / RECORD, self.record)

    def _name_classes(self) -> None:
        """So that who loads the model reads "positive" and not "LABEL_1"."""
        if names := self.data.label_names:
            self.student.config.id2label = dict(enumerate(names))  # type: ignore[union-attr]
            self.student.config.label2id = {name: number for number, name in enumerate(names)}  # type: ignore[union-attr]

    def _packed(self) -> Plain:
        folder, wanted = self.folder / EXPORT / PACKED, self.config.export
        written = write_packed(
            self.student,
            folder,
            unquantized_dtype=wanted.unquantized_dtype.name,  # type: ignore[arg-type]
            ternary_encoding=wanted.ternary_encoding.name,  # type: ignore[arg-type]
            processor=self.data.processor,
        )
        file = (folder / WEIGHTS).stat().st_size
        seen = compare(load_packed(folder), self.student, self.data, wanted.rows)
        exact = wanted.unquantized_dtype is UnquantizedDtype.float32
        self._check(
            seen, "export/packed", "export.unquantized_dtype=float32" if not exact else "export.packed=false", exact
        )
        return self._figures(file, seen) | {
            "bits_per_weight": written["bytes"]["bits_per_weight"],
            "full_precision_bytes": written["bytes"]["full_precision"],
            "full_precision": _whole_matrices(written["tensors"]),
            "unquantized_dtype": wanted.unquantized_dtype.name,
            "ternary_encoding": wanted.ternary_encoding.name,
        }

    def _onnx(self) -> Plain | None:
        if family(self.student).causal:
            self.say("export", "no ONNX file, which is for encoders")
            return None
        path = self.folder / EXPORT / ONNX
        self.say("export", f"{path} …")
        try:
            model: OnnxModel = export_onnx(self.student, path, self.data.example_batch(2))
        except OnnxError as error:
            raise OnnxError(f"{error}: leave it out with export.onnx=false") from error
        seen = compare(model, self.student, self.data, self.config.export.rows)
        self._check(seen, "export/model.onnx", "export.onnx=false")
        return self._figures(path.stat().st_size, seen) | {
            "inputs": list(model.inputs),
            "outputs": model.outputs,
        }

    def _figures(self, count: int, seen: Comparison) -> Plain:
        return {
            "bytes": count,
            "ratio": round(self._float32 / count, 3),
            "score": finite(seen.score),
            "student": finite(seen.reference),
            "rows": seen.rows,
            "largest_difference": seen.largest_difference,
            "agreement": seen.agreement,
        }

    def _check(self, seen: Comparison, name: str, remedy: str, exact: bool = False) -> None:
        told = (
            f"{self.data.metric} {score(seen.score)}, the student {score(seen.reference)}; largest difference of logits"
            f" {seen.largest_difference:.2g}, {seen.agreement:.2%} of predictions equal, rows: {seen.rows}"
        )
        self.say(name, told)
        if _as_good(seen) and (seen.agreement == 1 or not exact):
            return
        own = compare(InFloat64(self.student), self.student, self.data, seen.rows)
        if exact or not seen.largest_difference <= TIMES * own.largest_difference:
            raise NotFaithfulError(f"{name} does not do as the student does ({told}): leave it out with {remedy}")
        self.say(
            name,
            f"that is the student's own rounding: computed in float64 its {self.data.metric} is"
            f" {score(own.score)}, and its logits are up to {own.largest_difference:.2g} off",
        )


def _as_good(seen: Comparison) -> bool:
    """Whether the metric is at most half a point from the student's.

    Where it is undefined, as a correlation is for constant predictions, the predictions must agree; the logits as well
    where it is undefined for one of the two alone.
    """
    if math.isfinite(seen.score) and math.isfinite(seen.reference):
        return abs(seen.score - seen.reference) <= HALF_A_POINT * max(1.0, abs(seen.reference))
    both = not (math.isfinite(seen.score) or math.isfinite(seen.reference))
    return seen.agreement >= 1 - HALF_A_POINT and (both or seen.largest_difference <= NEAR)


def _whole_matrices(tensors: Plain) -> list[str]:
    """Names of the matrices that are not quantized, layers folded; vectors are biases, normalization and scales."""
    whole = [name for name, told in tensors.items() if len(told["shape"]) > 1 and not name.endswith(PARTS)]
    return list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name.removesuffix(".weight")) for name in whole))
