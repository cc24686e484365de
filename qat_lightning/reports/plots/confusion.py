"""Plot of confusion matrices, one for each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import shorten

import numpy as np
from matplotlib.figure import Figure

from qat_lightning.reports.plots.style import NORMAL, SMALL, new_figure

NAMED, COUNTED = 20, 12
"""Most classes with a name at the axes, and with a number in each cell."""


def confusion_plot(matrices: Mapping[str, Sequence[Sequence[int]]], classes: Sequence[str]) -> Figure:
    """Plot each model's counts, a row for each right class and a column for each answer, shaded by the share of the row."""
    figure = new_figure(3.3 * len(matrices), 3.4)
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axes, (name, matrix) in zip(panels, matrices.items(), strict=True):
        counts = np.asarray(matrix, dtype=float)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(name, fontsize=NORMAL)
        axes.set_xlabel("answer", fontsize=SMALL)
        axes.tick_params(labelsize=SMALL - 1)
        if len(classes) <= NAMED:
            names = [shorten(word, 14, placeholder="…") or "–" for word in classes]
            axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
            axes.set_yticks(range(len(names)), names, parse_math=False)
        if len(classes) <= COUNTED:
            for (row, column), count in np.ndenumerate(counts):
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count:.0f}", ha="center", va="center", fontsize=SMALL - 2, color=color)
    panels[0].set_ylabel("right class", fontsize=SMALL)
    return figure
