"""Attention maps side by side. Shapes: H heads, N queries, M keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from qat_lightning.io.screen import printable
from qat_lightning.reports.plots.style import NORMAL, SMALL, new_figure, style_of

PANEL = 2.7
"""Width and height of one map in inches."""

POINTS_PER_INCH = 72
SMALLEST_FONT = 5.0
"""Smallest readable font in points; if the labels need a smaller one, only every second, third, … token is named."""


def attention_map_plot(maps: Mapping[str, Sequence[Tensor]], tokens: Sequence[str] | None = None) -> Figure:
    """Plot a column for each model and rows for its first, middle and last layer, with one color scale per row.

    Args:
        maps: name ("teacher", "untrained", "student") → for each layer (H, N, M), one sample without its padding
            (`qat_lightning.analysis.layer_errors.sample_map`); the mean over the heads is drawn.
        tokens: N names, queries and keys.
    """
    shown = {
        name: [layers[index].detach().float().cpu().mean(0) for index in _rows(len(layers))]
        for name, layers in maps.items()
    }
    rows, depths = max(map(len, shown.values())), {name: len(layers) for name, layers in maps.items()}
    for panels in shown.values():
        if tokens is not None and len(tokens) != len(panels[0]):
            raise ValueError(f"{len(tokens)} tokens for attention maps of {len(panels[0])} queries")
    figure = new_figure(PANEL * len(shown) + 1.2, PANEL * rows + (0.9 if tokens else 0.5))
    grid = figure.subplots(rows, len(shown), squeeze=False, sharex=True, sharey=True)
    for row in range(rows):
        _draw_row(figure, list(grid[row]), [panels[min(row, len(panels) - 1)] for panels in shown.values()])
        grid[row][0].set_ylabel(_row_name(row, depths), fontsize=NORMAL)
    for position, name in enumerate(shown):
        grid[0][position].set_title(name, fontsize=NORMAL + 1, color=style_of(name, position)[0], fontweight="bold")
    if tokens is not None:
        _name_tokens(grid, tokens)
    figure.supxlabel("attends to (key)", fontsize=NORMAL)
    figure.supylabel("token (query)", fontsize=NORMAL)
    return figure


def _rows(layers: int) -> list[int]:
    """Return the first, middle and last layer, each once."""
    return sorted({0, layers // 2, layers - 1})


def _row_name(row: int, depths: Mapping[str, int]) -> str:
    """Name a row by its layer number if all models have the same depth."""
    depth = max(depths.values())
    if set(depths.values()) == {depth}:
        return f"layer {_rows(depth)[row] + 1} of {depth}"
    return ("first layer", "middle layer", "last layer")[row]


def _draw_row(figure: Figure, row: list[Axes], panels: list[Tensor]) -> None:
    top = max(float(panel.max()) for panel in panels)
    for axes, panel in zip(row, panels, strict=True):
        image = axes.imshow(panel.numpy(), cmap="viridis", vmin=0.0, vmax=top, interpolation="nearest")
        axes.tick_params(labelsize=SMALL - 1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    bar = figure.colorbar(image, ax=row, shrink=0.85, pad=0.015, ticks=MaxNLocator(5))
    bar.ax.tick_params(labelsize=SMALL - 1)
    bar.set_label("probability", fontsize=SMALL)


def _name_tokens(grid: Any, tokens: Sequence[str]) -> None:
    """Name keys below the last row, and queries beside the first column."""
    room = PANEL * 0.9 * POINTS_PER_INCH / len(tokens)
    every = max(1, math.ceil(SMALLEST_FONT / room))
    places, names = range(0, len(tokens), every), [printable(token) for token in tokens[::every]]
    # parse_math=False: dollar signs of a text do not start a formula
    form: dict[str, Any] = {"fontsize": min(SMALL, room * every * 0.95), "parse_math": False}
    for axes in grid[-1]:
        axes.set_xticks(places, names, rotation=90, **form)
    for axes in grid[:, 0]:
        axes.set_yticks(places, names, **form)
