"""Measure and draw the sections of report.md: each is its title, plot and table, or the reason why it is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from qat_lightning.analysis.attention_comparison import MAPS, compare_maps, describe_maps, mean
from qat_lightning.analysis.attention_norms import Norms, norm_analysis, norm_differences
from qat_lightning.analysis.dynamic_range import dynamic_range
from qat_lightning.analysis.layer_errors import layer_errors, sample_map, valid_tokens
from qat_lightning.analysis.result_files import read_landscapes, read_spectra
from qat_lightning.analysis.token_masks import CLS, SEP, class_ids, token_classes
from qat_lightning.analysis.training_log import read_history
from qat_lightning.io.files import atomic_write
from qat_lightning.io.markdown import table
from qat_lightning.models.capture import Batch, Signals
from qat_lightning.reports import plots, tables
from qat_lightning.reports.summary import NAMES

COMPARED = {"ranking_loss": "ranking loss", "cover_length_ratio": "cover-length ratio", "map_divergence": "map KL"}
DESCRIBED = {"attention_distance": "attention distance", "cls_mass": "first token's mass", "sep_mass": "[SEP] mass"}
VALUES, PROJECTIONS = "attention.value", "attention.projection.weight"
"""The value's signal, and the name of W_O among the signals."""

NO_TEACHER = "Not measured: there was no teacher to compare with."
Section = dict[str, Any]
"""title, and name, alt and table of the plot; or title and reason."""
Models = Mapping[str, Signals]
"""teacher, untrained, student → signals; absent models are missing."""


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


def layer_error_section(folder: Path, models: Models, batch: Batch) -> Section:
    """Draw the error of each layer's output."""
    title, students = "Error of each layer", _with_site(models, "hidden")
    teacher = students.pop("teacher", None)
    if teacher is None or not students:
        return {"title": title, "reason": NO_TEACHER}
    try:
        errors = {NAMES[name]: layer_errors(signals, teacher, batch) for name, signals in students.items()}
    except ValueError as error:  # a student of another depth or width than its teacher
        return {"title": title, "reason": f"Not measured: {error}."}
    picture(folder, plots.layer_error_plot(errors), "layer_errors")
    section = _drawn(title, "layer_errors", "Mean squared error of each layer's output", tables.error_table(errors))
    return section | {"has_zero": any(error == 0 for line in errors.values() for error in line)}


def map_section(folder: Path, models: Models, batch: Batch, tokens: Sequence[str] | None) -> Section:
    """Draw the attention maps of the first sample side by side."""
    title = "Attention maps"
    maps = {
        NAMES[name]: [sample_map(layer, batch) for layer in signals[MAPS]]
        for name, signals in _with_site(models, MAPS).items()
    }
    if not maps:
        return {"title": title, "reason": f"Not captured: no model has the signal {MAPS}."}
    picture(folder, plots.attention_map_plot(maps, _without_padding(tokens, batch)), "attention_maps")
    return _drawn(title, "attention_maps", "Attention maps, a column for each model")


def measure_section(folder: Path, models: Models, batch: Batch, tokens: Sequence[str] | None) -> Section:
    """Draw ranking loss, cover-length ratio, map divergence, attention distance, and the mass on [CLS] and [SEP]."""
    title, found = "Attention against the teacher", _with_site(models, MAPS)
    if "teacher" not in found or len(found) < 2:
        return {"title": title, "reason": NO_TEACHER}
    try:
        compared = {name: compare_maps(signals, found["teacher"], batch) for name, signals in found.items()}
    except ValueError as error:
        return {"title": title, "reason": f"Not measured: {error}."}
    separators = _separators(tokens, batch)
    measured = {name: compared[name] | describe_maps(found[name], batch, separators) for name in found}
    names = {key: name for key, name in (COMPARED | DESCRIBED).items() if key in measured["teacher"]}
    panels = {
        name: {NAMES[model]: own[key] for model, own in measured.items() if model != "teacher" or key in DESCRIBED}
        for key, name in names.items()
    }
    rows = [[NAMES[model], *(f"{mean(own[key]):.4g}" for key in own)] for model, own in measured.items()]
    head = ["mean over layers", *(names[key] for key in measured["teacher"])]
    picture(folder, plots.layer_panels_plot(panels), "attention_measures")
    return _drawn(title, "attention_measures", "Measures of attention, layer by layer", table(head, rows))


def norm_section(folder: Path, models: Models, batch: Batch, classes: Mapping[str, Tensor] | None) -> Section:
    """Draw norm-based attention by token class."""
    title, found = "Norm-based attention", _with_site(models, MAPS)
    found = {name: signals for name, signals in found.items() if VALUES in signals and PROJECTIONS in signals}
    teacher = found.pop("teacher", None)
    if teacher is None or not found:
        return {"title": title, "reason": NO_TEACHER}
    try:
        reference, keys = _norms(teacher), classes or _patch_classes(teacher[MAPS][0])
        differences = {
            NAMES[name]: norm_differences(reference, _norms(signals), keys, batch) for name, signals in found.items()
        }
    except ValueError as error:  # a student of another depth, or heads that share keys and values
        return {"title": title, "reason": f"Not measured: {error}."}
    picture(folder, plots.norm_plot(differences), "norms")
    return _drawn(title, "norms", "Differences of norm-based attention, by token class")


def range_section(folder: Path, models: Models, batch: Batch) -> Section:
    """Draw the dynamic range of the attention outputs."""
    title, site = "Dynamic range", "attention.output"
    ranges = {NAMES[name]: dynamic_range(own, batch, site) for name, own in _with_site(models, site).items()}
    if not ranges:
        return {"title": title, "reason": f"Not captured: no model has the signal {site}."}
    picture(folder, plots.dynamic_range_plot(ranges), "dynamic_range")
    return _drawn(title, "dynamic_range", "Range of each layer's attention output")


def spectrum_section(folder: Path) -> Section | None:
    """Draw the Hessian's eigenvalues, if the run's callbacks have written them."""
    title = "Hessian eigenvalues"
    try:
        written = read_spectra(folder)
    except ValueError as error:
        return {"title": title, "reason": f"Not shown: {error}."}
    if written is None:
        return None
    spectra, about = written
    pooled = {NAMES.get(name, name): [value for batch in own for value in batch] for name, own in spectra.items()}
    picture(folder, plots.spectrum_plot(pooled), "hessian")
    head = ["model", "mean of the positive", "largest", "negative"]
    rows = [[name, *_spectrum_row(values)] for name, values in pooled.items()]
    section = _drawn(title, "hessian", "The largest eigenvalues of the Hessian", table(head, rows))
    return section | {"about": about}


def landscape_section(folder: Path) -> Section | None:
    """Draw the loss around the weights, if the run's callbacks have written it."""
    title = "Loss landscape"
    try:
        written = read_landscapes(folder)
        if written is None:
            return None
        landscapes, about = written
        figure = plots.landscape_plot({NAMES.get(name, name): own for name, own in landscapes.items()})
    except ValueError as error:
        return {"title": title, "reason": f"Not shown: {error}."}
    picture(folder, figure, "landscape")
    return _drawn(title, "landscape", "The loss around the weights") | {"about": about}


def picture(folder: Path, figure: Figure, name: str) -> None:
    """Write `plots/<name>.png`."""
    with atomic_write(folder / "plots" / f"{name}.png") as temporary:
        figure.savefig(temporary, format="png")


def _drawn(title: str, name: str, alt: str, rows: str = "") -> Section:
    return {"title": title, "name": name, "alt": alt, "table": rows}


def _with_site(models: Models, site: str) -> dict[str, Signals]:
    """Return the models whose signals include the site, in the order of `NAMES`."""
    return {name: models[name] for name in NAMES if site in (models.get(name) or {})}


def _without_padding(tokens: Sequence[str] | None, batch: Batch) -> Sequence[str] | None:
    valid = valid_tokens(batch)
    if tokens is None or valid is None or len(tokens) != batch["attention_mask"].shape[1]:
        return tokens
    return [tokens[position] for position in valid.tolist()]


def _separators(tokens: Sequence[str] | None, batch: Batch) -> dict[str, Tensor]:
    """Find the positions, in all samples, of the ids that are [SEP] in the first sample; {} for images."""
    names, valid = _without_padding(tokens, batch), valid_tokens(batch)
    if names is None or "input_ids" not in batch:
        return {}
    ids = batch["input_ids"][0].tolist() if valid is None else batch["input_ids"][0, valid].tolist()
    separators = class_ids(names, ids)[SEP] if len(names) == len(ids) else []
    return {"sep_mass": token_classes(batch, {SEP: separators})[SEP]} if separators else {}


def _norms(signals: Signals) -> list[Norms]:
    layers = zip(signals[MAPS], signals[VALUES], signals[PROJECTIONS], strict=True)
    return [norm_analysis(*layer) for layer in layers]


def _patch_classes(maps: Tensor) -> dict[str, Tensor]:
    """Return the token classes of an image: the first token and the patches."""
    every = torch.ones(maps.shape[0], maps.shape[-1], dtype=torch.bool)
    first = every & (torch.arange(maps.shape[-1]) == 0)
    return {CLS: first, "other": every & ~first, "all": every}


def _spectrum_row(eigenvalues: Sequence[float]) -> list[str]:
    positive = [value for value in eigenvalues if value > 0]
    return [
        f"{mean(positive):.4g}" if positive else "–",
        f"{max(eigenvalues):.4g}" if eigenvalues else "–",
        f"{sum(value < 0 for value in eigenvalues)} of {len(eigenvalues)}",
    ]
