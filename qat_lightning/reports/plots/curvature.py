"""Plots of Hessian eigenvalues and of the loss around the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, MultipleLocator, NullFormatter, StrMethodFormatter
from scipy.stats import gaussian_kde

from qat_lightning.analysis.loss_landscape import Landscape
from qat_lightning.reports.plots.style import NORMAL, SMALL, new_figure, style_axes, style_of

BINS, LEVELS = 16, 15
SIGNS = {-1: "negative", 1: "positive"}
FEWEST = 5
"""The smallest number of eigenvalues for a density; fewer are drawn as ticks."""


def spectrum_plot(eigenvalues: Mapping[str, Sequence[float]]) -> Figure:
    """Plot histogram and density of each model's negative (left) and positive (right) eigenvalues by magnitude.

    Each sign is normalized separately, on a logarithmic axis; the legend gives the counts. Small values, few of them
    negative, indicate a flat and nearly convex minimum (arXiv:2211.11014, 2302.11812).
    """
    every = [value for own in eigenvalues.values() for value in own]
    signs = {sign: title for sign, title in SIGNS.items() if any(value * sign > 0 for value in every)} or {1: "no"}
    figure = new_figure(9.0 if len(signs) > 1 else 6.0, 3.3)
    panels = figure.subplots(1, len(signs), squeeze=False)[0]
    for axes, (sign, title) in zip(panels, signs.items(), strict=True):
        of_sign = {name: np.array([abs(v) for v in values if v * sign > 0]) for name, values in eigenvalues.items()}
        _draw_density(axes, of_sign)
        axes.set_title(f"{title} eigenvalues", fontsize=NORMAL, loc="left")
        axes.set_xlabel("magnitude (log scale)", fontsize=NORMAL)
    panels[0].set_ylabel("density in a decade", fontsize=NORMAL)
    return figure


def _draw_density(axes: Axes, values: Mapping[str, np.ndarray]) -> None:
    style_axes(axes)
    pooled = np.concatenate(list(values.values()))
    if not len(pooled):
        axes.set_xticks([])
        axes.set_yticks([])
        return
    low, high = np.log10(pooled.min()) - 0.15, np.log10(pooled.max()) + 0.15
    edges, fine = np.linspace(low, high, BINS + 1), np.linspace(low, high, 300)
    for position, (name, own) in enumerate(values.items()):
        color, _ = style_of(name, position)
        label, places = f"{name} ({len(own)})", np.log10(own)
        if len(own) >= FEWEST and np.ptp(places) > 0:
            area = np.full(
                len(places), 1 / (len(places) * (edges[1] - edges[0]))
            )  # makes that of the bars 1, in decades
            axes.hist(10**places, list(10**edges), weights=area, color=color, alpha=0.3, label=label)
            axes.plot(10**fine, gaussian_kde(places)(fine), color=color, linewidth=1.6)
        elif len(own):
            axes.plot(10**places, np.zeros_like(places), "|", color=color, markersize=14, label=label, clip_on=False)
    axes.set_xscale("log")
    axes.set_xlim(10**low, 10**high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high - low < 2 else (1,)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if all(len(own) < FEWEST for own in values.values()):
        axes.set_yticks([])
    axes.legend(fontsize=SMALL, framealpha=0.85, edgecolor="none")


def landscape_plot(landscapes: Mapping[str, Landscape]) -> Figure:
    """Plot contours of one to three models' landscapes in one color scale (arXiv:2211.11014, 2302.11812 Fig. 2)."""
    if not 1 <= len(landscapes) <= 3:
        raise ValueError(f"{len(landscapes)} landscapes: give one to three, more cannot be read side by side")
    heights = {name: np.array(given.losses, dtype=float) for name, given in landscapes.items()}
    every = np.concatenate([grid[np.isfinite(grid)] for grid in heights.values()])
    low, high = (every.min(), every.max()) if len(every) else (0.0, 1.0)
    figure = new_figure(2.9 * len(landscapes) + 0.9, 3.4)
    figure.set_layout_engine("compressed")  # panels of a fixed aspect side by side
    panels = figure.subplots(1, len(landscapes), squeeze=False, sharex=True, sharey=True)[0]
    for position, (axes, name) in enumerate(zip(panels, landscapes, strict=True)):
        drawn = _contours(axes, np.array(landscapes[name].steps), heights[name], float(low), float(high))
        axes.set_title(name, fontsize=NORMAL + 1, color=style_of(name, position)[0], fontweight="bold")
        axes.tick_params(labelsize=SMALL - 1)
    panels[0].set_ylabel("second direction", fontsize=NORMAL)
    bar = figure.colorbar(drawn, ax=list(panels), shrink=0.9, pad=0.02)
    bar.ax.tick_params(labelsize=SMALL - 1)
    bar.set_label("loss", fontsize=SMALL)
    return figure


def _contours(axes: Axes, steps: np.ndarray, losses: np.ndarray, low: float, high: float) -> ScalarMappable:
    extent = (*steps[[0, -1]], *steps[[0, -1]])
    image = axes.imshow(losses, "viridis", interpolation="bilinear", vmin=low, vmax=high, origin="lower", extent=extent)
    if high > low and np.isfinite(losses).any():
        levels = np.linspace(low, high, LEVELS)
        axes.contour(steps, steps, losses, levels, colors="white", linewidths=0.5, alpha=0.7)
    axes.plot(0, 0, "+", color="white", markersize=8)
    axes.set_xlabel("first direction", fontsize=NORMAL)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MultipleLocator(steps[-1] / 2))
    return image
