"""Plots of measures layer by layer, a line or a bar for each model. Shapes: L layers, T tokens, H heads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from qat_lightning.analysis.training_log import STEP_SIZES, StageHistory
from qat_lightning.reports.plots.style import NORMAL, SMALL, add_legend, new_figure, scale_by_span, style_axes, style_of

COLUMNS = 3
TITLES = {"weight": "α", "transformed": "‖f(x)‖", "weighted": "‖αf(x)‖", "summed": "‖Σ αf(x)‖, over heads"}


def layer_error_plot(errors: Mapping[str, list[float]]) -> Figure:
    """Plot the mean squared error of each hidden state against the teacher, a line for each model (arXiv:2302.11812 Fig. 2b)."""
    figure = new_figure(8.0, 3.6)
    axes = figure.subplots()
    style_axes(axes)
    logarithmic, _ = _draw_lines(axes, errors, first=0)
    if not logarithmic:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=14))
    axes.set_xlabel("layer (0: embeddings)", fontsize=NORMAL)
    axes.set_ylabel("mean squared error" + " (log scale)" * logarithmic, fontsize=NORMAL)
    add_legend(figure, max(len(errors), 1))
    return figure


def layer_panels_plot(panels: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Plot several measures over depth: title → model → one number for each layer; a panel each, a line for each model."""
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(3.0 * columns, 2.5 * rows + 0.35)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    names = max((list(lines) for lines in panels.values()), key=len)  # the panel with all models gives their order
    drawn: dict[str, Line2D] = {}
    for axes, (title, lines) in zip(grid.flat, panels.items(), strict=False):
        drawn |= _draw_panel(axes, title, lines)
    for number, axes in enumerate(grid.flat):
        axes.set_visible(number < len(panels))
        if number + columns >= len(panels):  # no panel is below it
            axes.set_xlabel("layer", fontsize=NORMAL)
            axes.tick_params(labelbottom=True)
    add_legend(figure, len(drawn), {name: drawn[name] for name in [*names, *drawn]})
    return figure


def _draw_panel(axes: Axes, title: str, lines: Mapping[str, Sequence[float]]) -> dict[str, Line2D]:
    style_axes(axes)
    axes.set_title(title, fontsize=NORMAL, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    logarithmic, drawn = _draw_lines(axes, lines, first=1)
    if logarithmic:
        axes.set_ylabel("log scale", fontsize=SMALL)
    else:
        finite = [height for line in lines.values() for height in line if math.isfinite(height)]
        axes.set_ylim(0, 1.08 * max(finite, default=0.0) or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    return drawn


def _draw_lines(axes: Axes, lines: Mapping[str, Sequence[float]], first: int) -> tuple[bool, dict[str, Line2D]]:
    """Draw a line for each model from layer `first`; return whether the axis is logarithmic, and the lines.

    An exact 0 has no place on a logarithmic axis and leaves a gap.
    """
    logarithmic = scale_by_span(axes, (height for line in lines.values() for height in line))
    drawn = {}
    for position, (name, line) in enumerate(lines.items()):
        color, marker = style_of(name, position)
        heights = [math.nan if logarithmic and height <= 0 else height for height in line]
        layers = range(first, first + len(line))
        (drawn[name],) = axes.plot(layers, heights, color=color, marker=marker, markersize=4, linewidth=1.4, label=name)
    return logarithmic, drawn


def dynamic_range_plot(ranges: Mapping[str, Sequence[Tensor]], clip: float | None = None) -> Figure:
    """Plot the smallest and largest hidden unit of the tokens of each layer: dark the mean over tokens, light the extremes.

    Source: arXiv:2211.11014 Fig. 5. `ranges` is name → for each layer (T, 2), see `qat_lightning.analysis.dynamic_range`;
    `clip` of an activation quantizer is drawn as two lines.
    """
    layers = max(map(len, ranges.values()))
    figure = new_figure(max(6.0, min(9.0, 3.0 + 0.6 * layers)), 3.6)
    axes = figure.subplots()
    style_axes(axes)
    axes.grid(visible=False, axis="x")
    axes.use_sticky_edges = False  # room below the bars as well as above
    width = 0.8 / len(ranges)
    for position, (name, given) in enumerate(ranges.items()):
        places = np.arange(1, len(given) + 1) + (position - (len(ranges) - 1) / 2) * width
        low, high = (np.array([layer[:, side].mean().item() for layer in given]) for side in (0, 1))
        lowest = np.array([layer[:, 0].min().item() for layer in given])
        highest = np.array([layer[:, 1].max().item() for layer in given])
        color, _ = style_of(name, position)
        axes.bar(places, highest - lowest, 0.86 * width, lowest, color=color, alpha=0.25, linewidth=0)
        axes.bar(places, high - low, 0.86 * width, low, color=color, alpha=0.9, linewidth=0, label=name)
    axes.axhline(0, color="#9A9A9A", linewidth=0.8)
    for bound in () if clip is None else (-clip, clip):
        axes.axhline(bound, color="#333333", linewidth=0.9, linestyle=":", label="clip" if bound > 0 else None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=14, min_n_ticks=1))
    axes.set_xlabel("layer", fontsize=NORMAL)
    axes.set_ylabel("hidden units of a token", fontsize=NORMAL)
    add_legend(figure, len(ranges) + (clip is not None))
    return figure


def norm_plot(differences: Mapping[str, Mapping[str, Mapping[str, Tensor]]]) -> Figure:
    """Plot |mean of the teacher − mean of the student| by token class, mean over layers and heads (arXiv:2211.11014 Fig. 6).

    Takes name of a student → quantity → token class → (L, H), see `qat_lightning.analysis.norm_differences`.
    """
    figure = new_figure(9.0, 2.9)
    panels = figure.subplots(1, len(TITLES))
    width = 0.8 / len(differences)
    for axes, (quantity, title) in zip(panels, TITLES.items(), strict=True):
        style_axes(axes)
        axes.grid(visible=False, axis="x")
        axes.set_title(title, fontsize=NORMAL, loc="left")
        for position, (name, of_student) in enumerate(differences.items()):
            heights = [float(of_class.mean()) for of_class in of_student[quantity].values()]
            places = np.arange(len(heights)) + (position - (len(differences) - 1) / 2) * width
            label = name if axes is panels[0] else None
            axes.bar(places, heights, 0.9 * width, color=style_of(name, position)[0], label=label)
            axes.set_xticks(range(len(heights)), list(of_student[quantity]), rotation=40, ha="right", fontsize=SMALL)
            axes.tick_params(axis="x", length=0, rotation=40)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    panels[0].set_ylabel("|teacher − student|", fontsize=NORMAL)
    add_legend(figure, len(differences))
    return figure


def step_size_plot(stage: StageHistory) -> Figure | None:
    """Plot learned step sizes relative to their first value, a line for each layer; None if none was logged."""
    columns = list(dict.fromkeys(name for row in stage.rows for name in row if name.startswith(f"{STEP_SIZES}/")))
    if not columns:
        return None
    figure = new_figure(9.0, 3.4)
    places = list(dict.fromkeys(name.split("/")[2] for name in columns))
    colors = {place: colormaps["viridis"](0.9 * index / len(places)) for index, place in enumerate(places)}
    for axes, kind in zip(figure.subplots(1, 2), ("weights", "activations"), strict=True):
        style_axes(axes)
        for name in (name for name in columns if name.split("/")[1] == kind):
            steps, values = stage.series(name)
            place = name.split("/")[2]
            relative = [value / values[0] for value in values]
            # layers.0 is layer 1, as in the other plots
            label = f"layer {int(place.split('.')[1]) + 1}" if place.startswith("layers.") else place
            axes.plot(steps, relative, color=colors[place], linewidth=1.4, label=label)
        axes.set_title(f"step sizes of {kind}", fontsize=NORMAL, loc="left")
        axes.set_xlabel("optimizer step", fontsize=NORMAL)
    figure.axes[0].set_ylabel("relative to the first", fontsize=NORMAL)
    named = {str(line.get_label()): line for axes in figure.axes for line in axes.lines}
    add_legend(figure, min(len(named), 8), named, loc="outside lower center")
    return figure
