"""The width of each weight, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from qat_lightning.io.screen import printable
from qat_lightning.models.module_paths import part_kind
from qat_lightning.reports.plots.style import NORMAL, SMALL, new_figure

LARGEST = 8


def bits_plot(bits: Mapping[str, int]) -> Figure:
    """Plot part → width: a row for each kind of part, a column for each layer; other parts have the first column."""
    kinds = list(dict.fromkeys(part_kind(part) for part in bits))
    layers = 1 + max((int(part.split(".")[1]) for part in bits if part.startswith("layers.")), default=-1)
    grid = np.full((len(kinds), max(layers, 1)), np.nan)
    for part, width in bits.items():
        grid[kinds.index(part_kind(part)), int(part.split(".")[1]) if part.startswith("layers.") else 0] = width
    figure = new_figure(2.2 + 0.42 * grid.shape[1], 0.9 + 0.32 * len(kinds))
    axes = figure.subplots()
    axes.imshow(grid, cmap="Blues", vmin=0, vmax=1.6 * LARGEST, aspect="auto")
    for row, column in np.argwhere(~np.isnan(grid)):
        axes.text(column, row, f"{grid[row, column]:.0f}", ha="center", va="center", fontsize=SMALL)
    axes.set_yticks(range(len(kinds)), [printable(kind) for kind in kinds], fontsize=SMALL)
    axes.set_xticks(range(grid.shape[1]), [str(layer) for layer in range(grid.shape[1])], fontsize=SMALL)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("layer", fontsize=NORMAL)
    axes.set_title("bits of each weight", fontsize=NORMAL)
    return figure
