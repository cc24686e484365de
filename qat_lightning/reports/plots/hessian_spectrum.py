"""The largest Hessian eigenvalues of many mini-batches, pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from scipy.stats import gaussian_kde

from qat_lightning.reports.plots.style import NORMAL, SMALL, look, new_figure, tidy

SIGNS = {-1: "negative", 1: "positive"}
FEWEST = 5
"""A density needs at least so many eigenvalues; fewer are drawn as ticks alone."""


def spectrum_plot(eigenvalues: Mapping[str, Sequence[float]], bins: int = 16) -> Figure:
    """Histogram and kernel density of the negative (left) and the positive (right) eigenvalues by their magnitude.

    A sign that none has gets no panel. Each sign is normalized by itself, on a logarithmic axis; the count stands in the
    legend. Small and few negative ones are a flat and nearly convex minimum (arXiv:2211.11014, 2302.11812).

    Args:
        eigenvalues: name of a model → the eigenvalues of all its mini-batches.
    """
    every = [value for own in eigenvalues.values() for value in own]
    signs = {sign: title for sign, title in SIGNS.items() if any(value * sign > 0 for value in every)} or {1: "no"}
    figure = new_figure(9.0 if len(signs) > 1 else 6.0, 3.3)
    panels = figure.subplots(1, len(signs), squeeze=False)[0]
    for axes, (sign, title) in zip(panels, signs.items(), strict=True):
        of_sign = {name: np.array([abs(v) for v in values if v * sign > 0]) for name, values in eigenvalues.items()}
        _draw(axes, of_sign, bins)
        axes.set_title(f"{title} eigenvalues", fontsize=NORMAL, loc="left")
        axes.set_xlabel("magnitude (log scale)", fontsize=NORMAL)
    panels[0].set_ylabel("density in a decade", fontsize=NORMAL)
    return figure


def _draw(axes: Axes, values: Mapping[str, np.ndarray], bins: int) -> None:
    tidy(axes)
    pooled = np.concatenate(list(values.values()))
    if not len(pooled):
        axes.set_xticks([])
        axes.set_yticks([])
        return
    low, high = np.log10(pooled.min()) - 0.15, np.log10(pooled.max()) + 0.15
    edges, fine = np.linspace(low, high, bins + 1), np.linspace(low, high, 300)
    for position, (name, own) in enumerate(values.items()):
        colour, _ = look(name, position)
        label, places = f"{name} ({len(own)})", np.log10(own)
        if len(own) >= FEWEST and np.ptp(places) > 0:
            axes.hist(
                10**places, list(10**edges), weights=_density(places, edges), color=colour, alpha=0.3, label=label
            )
            axes.plot(10**fine, gaussian_kde(places)(fine), color=colour, linewidth=1.6)
        elif len(own):
            axes.plot(10**places, np.zeros_like(places), "|", color=colour, markersize=14, label=label, clip_on=False)
    _scale(axes, low, high)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if all(len(own) < FEWEST for own in values.values()):
        axes.set_yticks([])
    axes.legend(fontsize=SMALL, framealpha=0.85, edgecolor="none")


def _scale(axes: Axes, low: float, high: float) -> None:
    """From 10^low to 10^high; short spans have ticks at 2 and 5 as well."""
    axes.set_xscale("log")
    axes.set_xlim(10**low, 10**high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high - low < 2 else (1,)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _density(places: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Weights that make bars of area 1 in decades."""
    return np.full(len(places), 1 / (len(places) * (edges[1] - edges[0])))
