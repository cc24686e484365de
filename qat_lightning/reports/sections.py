"""Measure and draw the sections of report.md: each is its plot and table, or the reason why it is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from qat_lightning.analysis.attention_maps import MAPS, compare_maps, describe_maps, mean
from qat_lightning.analysis.attention_norms import Norms, norm_analysis, norm_differences
from qat_lightning.analysis.bit_allocation import RECORD, read_record
from qat_lightning.analysis.dynamic_range import dynamic_range
from qat_lightning.analysis.layer_errors import layer_errors, sample_map, valid_tokens
from qat_lightning.analysis.result_files import read_landscapes, read_spectra
from qat_lightning.analysis.token_masks import CLS, SEP, class_ids, token_classes
from qat_lightning.analysis.training_log import read_history
from qat_lightning.io.files import atomic_write
from qat_lightning.io.markdown import human_bytes, table
from qat_lightning.models.capture import Batch, Signals
from qat_lightning.reports import plots, tables
from qat_lightning.reports.summary import NAMES

COMPARED = {"ranking_loss": "ranking loss", "cover_length_ratio": "cover-length ratio", "map_divergence": "map KL"}
DESCRIBED = {"attention_distance": "attention distance", "cls_mass": "first token's mass", "sep_mass": "[SEP] mass"}
HIDDEN, OUTPUT, VALUES, PROJECTIONS = "hidden", "attention.output", "attention.value", "attention.projection.weight"
"""Names of signals; the last one is W_O, which is among them."""

Section = dict[str, Any]
"""title, and name, alt and table of the plot; or title and reason."""


@dataclass(frozen=True)
class Captured:
    """The signals of a run's models on one batch, see `qat_lightning.reports.report.draw_sections`."""

    folder: Path
    models: Mapping[str, Signals]
    batch: Batch
    tokens: Sequence[str] | None = None
    classes: Mapping[str, Tensor] | None = None

    def having(self, *sites: str) -> dict[str, Signals]:
        """Return the models whose signals include the sites, by their names in plots; ValueError if there is none."""
        found = {NAMES[key]: self.models[key] for key in NAMES if set(sites) <= set(self.models.get(key) or {})}
        if not found:
            raise ValueError(f"no model has the signal {' and '.join(sites)}")
        return found

    def compared(self, *sites: str) -> tuple[Signals, dict[str, Signals]]:
        """Return the teacher and the other models; ValueError if one of them is missing."""
        students = self.having(*sites)
        if (teacher := students.pop("teacher", None)) is None or not students:
            raise ValueError("there was no teacher to compare with")
        return teacher, students

    @cached_property
    def sample_tokens(self) -> Sequence[str] | None:
        """The tokens of the first sample without its padding."""
        valid = valid_tokens(self.batch)
        if self.tokens is None or valid is None or len(self.tokens) != self.batch["attention_mask"].shape[1]:
            return self.tokens
        return [self.tokens[position] for position in valid.tolist()]


def draw_training(folder: Path, results: Mapping[str, Any]) -> dict[str, bool]:
    """Draw loss and metric over the steps, and learned step sizes; return which of the two were logged."""
    history = read_history(folder, results["steps"])
    if not any(stage.rows for stage in history):
        return {"curves": False, "step_sizes": False}
    figure = plots.training_curves(history, results["metric"], results.get("teacher"), results.get("untrained"))
    picture(folder, figure, "training")
    steps = plots.step_size_plot(history[-1])
    if steps is not None:
        picture(folder, steps, "step_sizes")
    return {"curves": True, "step_sizes": steps is not None}


def draw_confusion(folder: Path, results: Mapping[str, Any]) -> bool:
    """Draw the confusion matrices of `metrics.json`; return whether it has some."""
    answers = results.get("answers") or {}
    models = {NAMES[name]: model["confusion"] for name, model in answers.get("models", {}).items()}
    if not models or None in models.values():
        return False
    picture(folder, plots.confusion_plot(models, answers["classes"]), "confusion")
    return True


def draw_all(run: Captured) -> Iterator[Section]:
    """Draw the sections of `SECTIONS`; what a section raises as ValueError is the reason why it is missing."""
    for title, draw in SECTIONS.items():
        try:
            section = draw(run)
        except ValueError as error:  # no such signal, a student of another shape, a damaged file
            section = {"reason": f"Not shown: {error}."}
        if section is not None:
            if "figure" in section:
                picture(run.folder, section.pop("figure"), section["name"])
            yield {"title": title, **section}


def picture(folder: Path, figure: Figure, name: str) -> None:
    """Write `plots/<name>.png`."""
    with atomic_write(folder / "plots" / f"{name}.png") as temporary:
        figure.savefig(temporary, format="png")


def _drawn(name: str, alt: str, figure: Figure, rows: str = "", **more: Any) -> Section:
    return {"name": name, "alt": alt, "figure": figure, "table": rows, **more}


def _layer_errors(run: Captured) -> Section:
    teacher, students = run.compared(HIDDEN)
    errors = {name: layer_errors(signals, teacher, run.batch) for name, signals in students.items()}
    figure, rows = plots.layer_error_plot(errors), tables.error_table(errors)
    zero = any(error == 0 for line in errors.values() for error in line)
    return _drawn("layer_errors", "Mean squared error of each layer's output", figure, rows, has_zero=zero)


def _maps(run: Captured) -> Section:
    maps = {name: [sample_map(layer, run.batch) for layer in own[MAPS]] for name, own in run.having(MAPS).items()}
    figure = plots.attention_map_plot(maps, run.sample_tokens)
    return _drawn("attention_maps", "Attention maps, a column for each model", figure)


def _measures(run: Captured) -> Section:
    teacher, students = run.compared(MAPS)
    models, separators = {"teacher": teacher, **students}, _separators(run)
    measured = {
        name: compare_maps(own, teacher, run.batch) | describe_maps(own, run.batch, separators)
        for name, own in models.items()
    }
    names = {key: name for key, name in (COMPARED | DESCRIBED).items() if key in measured["teacher"]}
    panels = {
        name: {model: own[key] for model, own in measured.items() if model != "teacher" or key in DESCRIBED}
        for key, name in names.items()
    }
    rows = [[model, *(f"{mean(layers):.4g}" for layers in own.values())] for model, own in measured.items()]
    head = ["mean over layers", *(names[key] for key in measured["teacher"])]
    figure = plots.layer_panels_plot(panels)
    return _drawn("attention_measures", "Measures of attention, layer by layer", figure, table(head, rows))


def _norm_differences(run: Captured) -> Section:
    teacher, students = run.compared(MAPS, VALUES, PROJECTIONS)
    maps, reference = teacher[MAPS][0], _norms(teacher)
    every = torch.ones(maps.shape[0], maps.shape[-1], dtype=torch.bool)
    first = every & (torch.arange(maps.shape[-1]) == 0)
    keys = run.classes or {
        CLS: first,
        "other": every & ~first,
        "all": every,
    }  # of an image: the first token, the patches
    differences = {name: norm_differences(reference, _norms(own), keys, run.batch) for name, own in students.items()}
    return _drawn("norms", "Differences of norm-based attention, by token class", plots.norm_plot(differences))


def _ranges(run: Captured) -> Section:
    ranges = {name: dynamic_range(own, run.batch, OUTPUT) for name, own in run.having(OUTPUT).items()}
    return _drawn("dynamic_range", "Range of each layer's attention output", plots.dynamic_range_plot(ranges))


def _spectrum(run: Captured) -> Section | None:
    if (written := read_spectra(run.folder)) is None:
        return None
    spectra, about = written
    pooled = {NAMES.get(name, name): [value for batch in own for value in batch] for name, own in spectra.items()}
    head = ["model", "mean of the positive", "largest", "negative"]
    lines = []
    for name, values in pooled.items():
        positive = [value for value in values if value > 0]
        figures = (f"{mean(positive):.4g}" if positive else "–", f"{max(values):.4g}" if values else "–")
        lines.append([name, *figures, f"{sum(value < 0 for value in values)} of {len(values)}"])
    rows = table(head, lines)
    alt, figure = "The largest eigenvalues of the Hessian", plots.spectrum_plot(pooled)
    return _drawn("hessian", alt, figure, rows, about=about)


def _landscape(run: Captured) -> Section | None:
    if (written := read_landscapes(run.folder)) is None:
        return None
    landscapes, about = written
    figure = plots.landscape_plot({NAMES.get(name, name): own for name, own in landscapes.items()})
    return _drawn("landscape", "The loss around the weights", figure, about=about)


def _chosen_bits(run: Captured) -> Section | None:
    if not (run.folder / RECORD).is_file():
        return None
    record = read_record(run.folder)
    chosen = {
        part: next(option for option in own if option.bits == record["bits"][part])
        for part, own in record["options"].items()
    }
    widths = [option.bits for option in next(iter(record["options"].values()))]
    every = {
        f"{width} bits everywhere": [own[column] for own in record["options"].values()]
        for column, width in enumerate(widths)
    }
    rows = [
        [name, human_bytes(sum(option.bytes for option in own)), f"{sum(option.error for option in own):.3g}"]
        for name, own in ({"chosen": list(chosen.values())} | every).items()
    ]
    flow = "{" + ", ".join(f"{part}: {width}" for part, width in record["bits"].items()) + "}"
    figure = plots.bits_plot(record["bits"])
    head = ["widths", "bytes of these weights", "sum of errors"]
    return _drawn("bits", "The width of each weight", figure, table(head, rows), budget=record["budget"], bits=flow)


SECTIONS: dict[str, Callable[[Captured], Section | None]] = {
    "Widths under the budget": _chosen_bits,
    "Error of each layer": _layer_errors,
    "Attention maps": _maps,
    "Attention against the teacher": _measures,
    "Norm-based attention": _norm_differences,
    "Dynamic range": _ranges,
    "Hessian eigenvalues": _spectrum,
    "Loss landscape": _landscape,
}
"""Title → the function that draws the section, in the order of the report; None leaves the section out."""


def _separators(run: Captured) -> dict[str, Tensor]:
    """Find the positions, in all samples, of the ids that are [SEP] in the first sample; {} for images."""
    names, valid = run.sample_tokens, valid_tokens(run.batch)
    if names is None or "input_ids" not in run.batch:
        return {}
    ids = run.batch["input_ids"][0].tolist() if valid is None else run.batch["input_ids"][0, valid].tolist()
    separators = class_ids(names, ids)[SEP] if len(names) == len(ids) else []
    return {"sep_mass": token_classes(run.batch, {SEP: separators})[SEP]} if separators else {}


def _norms(signals: Signals) -> list[Norms]:
    layers = zip(signals[MAPS], signals[VALUES], signals[PROJECTIONS], strict=True)
    return [norm_analysis(*layer) for layer in layers]
