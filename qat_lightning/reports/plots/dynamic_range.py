"""The dynamic range of each layer's output. Shapes: T tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from qat_lightning.reports.plots.style import NORMAL, SMALL, look, new_figure, tidy


def dynamic_range_plot(ranges: Mapping[str, Sequence[Tensor]], clip: float | None = None) -> Figure:
    """A band for each layer and model: dark the mean over tokens of their smallest and largest hidden unit, light the extremes.

    Source: arXiv:2211.11014 Fig. 5.

    Args:
        ranges: name → for each layer (T, 2), smallest and largest unit of each token
            (`qat_lightning.analysis.dynamic_range`).
        clip: where an activation quantizer cuts, drawn as two lines.
    """
    layers = max(map(len, ranges.values()))
    figure = new_figure(max(6.0, min(9.0, 3.0 + 0.6 * layers)), 3.6)
    axes = figure.subplots()
    tidy(axes)
    axes.grid(visible=False, axis="x")
    axes.use_sticky_edges = False  # room below the bars as well as above
    width = 0.8 / len(ranges)
    for position, (name, given) in enumerate(ranges.items()):
        places = np.arange(1, len(given) + 1) + (position - (len(ranges) - 1) / 2) * width
        _draw(axes, name, position, places, width, given)
    axes.axhline(0, color="#9A9A9A", linewidth=0.8)
    for bound in () if clip is None else (-clip, clip):
        axes.axhline(bound, color="#333333", linewidth=0.9, linestyle=":", label="clip" if bound > 0 else None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=14, min_n_ticks=1))
    axes.set_xlabel("layer", fontsize=NORMAL)
    axes.set_ylabel("hidden units of a token", fontsize=NORMAL)
    figure.legend(loc="outside upper center", ncols=len(ranges) + (clip is not None), fontsize=SMALL, frameon=False)
    return figure


def _draw(axes: Axes, name: str, position: int, places: np.ndarray, width: float, given: Sequence[Tensor]) -> None:
    low, high = (np.array([layer[:, side].mean().item() for layer in given]) for side in (0, 1))
    lowest = np.array([layer[:, 0].min().item() for layer in given])
    highest = np.array([layer[:, 1].max().item() for layer in given])
    colour, _ = look(name, position)
    axes.bar(places, highest - lowest, 0.86 * width, lowest, color=colour, alpha=0.25, linewidth=0)
    axes.bar(places, high - low, 0.86 * width, low, color=colour, alpha=0.9, linewidth=0, label=name)
