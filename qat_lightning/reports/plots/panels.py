"""Several measures of each layer, a panel for each measure and a line for each model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from qat_lightning.reports.plots.style import NORMAL, SMALL, look, new_figure, scale_by_span, tidy

COLUMNS = 3


def layer_panels_plot(panels: Mapping[str, Mapping[str, Sequence[float]]], columns: int = COLUMNS) -> Figure:
    """Ranking loss, cover-length ratio, map divergence, attention distance, [CLS] mass, … over depth.

    Args:
        panels: title → name of a model ("teacher", "student", …) → one number for each layer, the first of which is
            layer 1.
    """
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(3.0 * columns, 2.5 * rows + 0.35)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    # the panel with all models says in which order they are named
    names = max((list(lines) for lines in panels.values()), key=len)
    drawn: dict[str, Line2D] = {}
    for axes, (title, lines) in zip(grid.flat, panels.items(), strict=False):
        drawn |= _draw(axes, title, lines)
    named = {name: drawn[name] for name in [*names, *drawn]}
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for column in range(columns):
        below = [row for row in range(rows) if row * columns + column < len(panels)][-1]
        grid[below][column].set_xlabel("layer", fontsize=NORMAL)
        grid[below][column].tick_params(labelbottom=True)
    figure.legend(named.values(), named, loc="outside upper center", ncols=len(named), fontsize=SMALL, frameon=False)
    return figure


def _draw(axes: Axes, title: str, lines: Mapping[str, Sequence[float]]) -> dict[str, Line2D]:
    tidy(axes)
    axes.set_title(title, fontsize=NORMAL, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    logarithmic = scale_by_span(axes, (height for line in lines.values() for height in line))
    named = {}
    for position, (name, line) in enumerate(lines.items()):
        colour, marker = look(name, position)
        heights = [math.nan if logarithmic and height <= 0 else height for height in line]
        (named[name],) = axes.plot(
            range(1, len(line) + 1), heights, color=colour, marker=marker, markersize=4, linewidth=1.4
        )
    if logarithmic:
        axes.set_ylabel("log scale", fontsize=SMALL)
    else:
        finite = [height for line in lines.values() for height in line if math.isfinite(height)]
        axes.set_ylim(0, 1.08 * max(finite, default=0.0) or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    return named
