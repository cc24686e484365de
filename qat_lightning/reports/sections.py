"""The sections of report.md that hold pictures of signals and weights: each a list of Markdown blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from qat_lightning.analysis.attention_comparison import MAPS, compare_maps, describe_maps, mean
from qat_lightning.analysis.attention_norms import Norms, norm_analysis, norm_differences
from qat_lightning.analysis.dynamic_range import dynamic_range
from qat_lightning.analysis.layer_errors import layer_errors, sample_map, valid_tokens
from qat_lightning.analysis.result_files import read_landscapes, read_spectra
from qat_lightning.analysis.token_masks import CLS, SEP, class_ids, token_classes
from qat_lightning.io import markdown
from qat_lightning.io.files import atomic_write
from qat_lightning.models.capture import Batch, Signals
from qat_lightning.reports import captions, tables
from qat_lightning.reports.plots.attention_maps import attention_map_plot
from qat_lightning.reports.plots.attention_norms import norm_plot
from qat_lightning.reports.plots.dynamic_range import dynamic_range_plot
from qat_lightning.reports.plots.hessian_spectrum import spectrum_plot
from qat_lightning.reports.plots.layer_errors import layer_error_plot
from qat_lightning.reports.plots.loss_landscape import landscape_plot
from qat_lightning.reports.plots.panels import layer_panels_plot

NAMES = {"teacher": "teacher", "untrained": "quantized, not trained", "student": "student"}
"""How the three models are called in tables and pictures."""

COMPARED = {"ranking_loss": "ranking loss", "cover_length_ratio": "cover-length ratio", "map_divergence": "map KL"}
DESCRIBED = {"attention_distance": "attention distance", "cls_mass": "first token's mass", "sep_mass": "[SEP] mass"}
VALUES, PROJECTIONS = "attention.value", "attention.projection.weight"
"""The value's signal, and W_O beside the signals."""

NO_TEACHER = "Not measured: there was no teacher to compare with."
Blocks = list[str]
Models = Mapping[str, Signals]
"""teacher, untrained, student → signals; one that was not there is missing."""


def layer_section(folder: Path, models: Models, batch: Batch) -> Blocks:
    """The error of each layer's output."""
    title, given = "## Error of each layer", _having(models, "hidden")
    teacher = given.pop("teacher", None)
    if teacher is None or not given:
        return [title, NO_TEACHER]
    try:
        errors = {NAMES[name]: layer_errors(own, teacher, batch) for name, own in given.items()}
    except ValueError as reason:  # a student of another depth or width than its teacher
        return [title, f"Not measured: {markdown.text(reason)}."]
    drawn = picture(folder, layer_error_plot(errors), "layer_errors", "Mean squared error of each layer's output")
    return [title, drawn, captions.errors(errors), tables.error_table(errors)]


def map_section(folder: Path, models: Models, batch: Batch, tokens: Sequence[str] | None) -> Blocks:
    """The attention maps of the first sample, side by side."""
    title = "## Attention maps"
    maps = {
        NAMES[name]: [sample_map(layer, batch) for layer in own[MAPS]] for name, own in _having(models, MAPS).items()
    }
    if not maps:
        return [title, f"Not captured: no model gave its `{MAPS}`."]
    figure = attention_map_plot(maps, _without_padding(tokens, batch))
    return [
        title,
        picture(folder, figure, "attention_maps", "Attention maps, a column for each model"),
        captions.ATTENTION,
    ]


def comparison_section(folder: Path, models: Models, batch: Batch, tokens: Sequence[str] | None) -> Blocks:
    """Ranking loss, cover-length ratio, map divergence, attention distance, mass on [CLS] and [SEP]."""
    title, given = "## Attention against the teacher", _having(models, MAPS)
    if "teacher" not in given or len(given) < 2:
        return [title, NO_TEACHER]
    try:
        compared = {name: compare_maps(own, given["teacher"], batch) for name, own in given.items()}
    except ValueError as reason:
        return [title, f"Not measured: {markdown.text(reason)}."]
    described = {name: describe_maps(own, batch, _separators(tokens, batch)) for name, own in given.items()}
    measured = {name: compared[name] | described[name] for name in given}
    panels = {
        says: {NAMES[name]: own[what] for name, own in measured.items() if name != "teacher" or what in DESCRIBED}
        for what, says in (COMPARED | DESCRIBED).items()
        if what in measured["teacher"]
    }
    rows = [[NAMES[name], *(f"{mean(own[what]):.4g}" for what in own)] for name, own in measured.items()]
    names = [(COMPARED | DESCRIBED)[what] for what in measured["teacher"]]
    drawn = picture(folder, layer_panels_plot(panels), "attention_measures", "Measures of attention, layer by layer")
    return [title, markdown.table(["mean over layers", *names], rows), drawn, captions.MEASURES]


def range_section(folder: Path, models: Models, batch: Batch) -> Blocks:
    """The dynamic range of the attention outputs."""
    title, site = "## Dynamic range", "attention.output"
    ranges = {NAMES[name]: dynamic_range(own, batch, site) for name, own in _having(models, site).items()}
    if not ranges:
        return [title, f"Not captured: no model gave its `{site}`."]
    drawn = picture(folder, dynamic_range_plot(ranges), "dynamic_range", "Range of each layer's attention output")
    return [title, drawn, captions.RANGES]


def norm_section(folder: Path, models: Models, batch: Batch, classes: Mapping[str, Tensor] | None) -> Blocks:
    """Attention weighed by the vectors it carries, by token class."""
    title = "## Attention weighed by its vectors"
    given = {name: own for name, own in _having(models, MAPS).items() if VALUES in own and PROJECTIONS in own}
    teacher = given.pop("teacher", None)
    if teacher is None or not given:
        return [title, NO_TEACHER]
    try:
        other = _norms(teacher)
        differences = {
            NAMES[name]: norm_differences(other, _norms(own), classes or _of_patches(teacher[MAPS][0]), batch)
            for name, own in given.items()
        }
    except ValueError as reason:  # a student of another depth, or heads that share keys and values
        return [title, f"Not measured: {markdown.text(reason)}."]
    drawn = picture(folder, norm_plot(differences), "norms", "Differences of norm-based attention, by token class")
    return [title, drawn, captions.NORMS]


def weight_sections(folder: Path) -> Blocks:
    """Hessian eigenvalues and loss landscape, where the run's callbacks have written them."""
    return [
        *_or_reason("## Hessian eigenvalues", _spectra, folder),
        *_or_reason("## Loss landscape", _landscapes, folder),
    ]


def _or_reason(title: str, section: Callable[[Path], Blocks], folder: Path) -> Blocks:
    """A section below its title; where its file is damaged, the reason."""
    try:
        blocks = section(folder)
    except ValueError as reason:
        return [title, f"Not shown: {reason}."]
    return [title, *blocks] if blocks else []


def _spectra(folder: Path) -> Blocks:
    written = read_spectra(folder)
    if written is None:
        return []
    spectra, about = written
    pooled = {NAMES.get(name, name): [value for batch in own for value in batch] for name, own in spectra.items()}
    drawn = picture(folder, spectrum_plot(pooled), "hessian", "The largest eigenvalues of the Hessian")
    rows = [[markdown.text(name), *_told(values)] for name, values in pooled.items()]
    head = ["model", "mean of the positive", "largest", "negative"]
    return [drawn, captions.HESSIAN.format(about=markdown.text(about)), markdown.table(head, rows)]


def _landscapes(folder: Path) -> Blocks:
    kept = read_landscapes(folder)
    if kept is None:
        return []
    landscapes, about = kept
    figure = landscape_plot({NAMES.get(name, name): given for name, given in landscapes.items()})
    drawn = picture(folder, figure, "landscape", "The loss around the weights")
    return [drawn, captions.LANDSCAPE.format(about=markdown.text(about))]


def picture(folder: Path, figure: Figure, name: str, says: str) -> str:
    """Written to `plots/<name>.png`; the Markdown that shows it."""
    with atomic_write(folder / "plots" / f"{name}.png") as temporary:
        figure.savefig(temporary, format="png")
    return f"![{says}](plots/{name}.png)"


def _having(models: Models, site: str) -> dict[str, Signals]:
    """The models, in the order of `NAMES`, whose signals hold the site."""
    return {name: models[name] for name in NAMES if site in (models.get(name) or {})}


def _without_padding(tokens: Sequence[str] | None, batch: Batch) -> Sequence[str] | None:
    valid = valid_tokens(batch)
    if tokens is None or valid is None or len(tokens) != batch["attention_mask"].shape[1]:
        return tokens
    return [tokens[position] for position in valid.tolist()]


def _separators(tokens: Sequence[str] | None, batch: Batch) -> dict[str, Tensor]:
    """Where the whole batch has what the first sample's names call [SEP]; nothing for an image."""
    names, valid = _without_padding(tokens, batch), valid_tokens(batch)
    if names is None or "input_ids" not in batch:
        return {}
    ids = batch["input_ids"][0].tolist() if valid is None else batch["input_ids"][0, valid].tolist()
    separators = class_ids(names, ids)[SEP] if len(names) == len(ids) else []
    return {"sep_mass": token_classes(batch, {SEP: separators})[SEP]} if separators else {}


def _norms(signals: Signals) -> list[Norms]:
    layers = zip(signals[MAPS], signals[VALUES], signals[PROJECTIONS], strict=True)
    return [norm_analysis(*layer) for layer in layers]


def _of_patches(maps: Tensor) -> dict[str, Tensor]:
    """Token classes of an image: the first token and the patches."""
    every = torch.ones(maps.shape[0], maps.shape[-1], dtype=torch.bool)
    first = every & (torch.arange(maps.shape[-1]) == 0)
    return {CLS: first, "other": every & ~first, "all": every}


def _told(eigenvalues: Sequence[float]) -> list[str]:
    positive = [value for value in eigenvalues if value > 0]
    return [
        f"{mean(positive):.4g}" if positive else "–",
        f"{max(eigenvalues):.4g}" if eigenvalues else "–",
        f"{sum(value < 0 for value in eigenvalues)} of {len(eigenvalues)}",
    ]
