"""Loss landscapes side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator

from qat_lightning.analysis.loss_landscape import Landscape
from qat_lightning.reports.plots.style import NORMAL, SMALL, look, new_figure

LEVELS = 15


def landscape_plot(landscapes: Mapping[str, Landscape], surface: bool = False) -> Figure:
    """Contours, or surfaces, of up to three models, in one colour scale (arXiv:2211.11014, 2302.11812 Fig. 2).

    Args:
        landscapes: name of a model → its loss on a grid (`qat_lightning.analysis.loss_landscape`).

    Raises:
        ValueError: no landscape, or more than three.
    """
    if not 1 <= len(landscapes) <= 3:
        raise ValueError(f"{len(landscapes)} landscapes: give one to three, more cannot be read side by side")
    heights = {name: np.array(given.losses, dtype=float) for name, given in landscapes.items()}
    every = np.concatenate([grid[np.isfinite(grid)] for grid in heights.values()])
    low, high = (every.min(), every.max()) if len(every) else (0.0, 1.0)
    figure = new_figure(2.9 * len(landscapes) + 0.9, 3.4)
    figure.set_layout_engine("compressed")  # panels of a fixed aspect side by side
    form: dict[str, Any] = {"subplot_kw": {"projection": "3d"}} if surface else {"sharex": True, "sharey": True}
    panels = figure.subplots(1, len(landscapes), squeeze=False, **form)[0]
    for position, (axes, name) in enumerate(zip(panels, landscapes, strict=True)):
        draw = _surface if surface else _contours
        drawn = draw(axes, np.array(landscapes[name].steps), heights[name], float(low), float(high))
        axes.set_title(name, fontsize=NORMAL + 1, color=look(name, position)[0], fontweight="bold")
        axes.tick_params(labelsize=SMALL - 1)
    if not surface:
        panels[0].set_ylabel("second direction", fontsize=NORMAL)
    bar = figure.colorbar(drawn, ax=list(panels), shrink=0.7 if surface else 0.9, pad=0.08 if surface else 0.02)
    bar.ax.tick_params(labelsize=SMALL - 1)
    bar.set_label("loss", fontsize=SMALL)
    return figure


def _contours(axes: Axes, steps: np.ndarray, losses: np.ndarray, low: float, high: float) -> ScalarMappable:
    image = axes.imshow(
        losses,
        cmap="viridis",
        vmin=low,
        vmax=high,
        origin="lower",
        interpolation="bilinear",
        extent=(*steps[[0, -1]], *steps[[0, -1]]),
    )
    if high > low and np.isfinite(losses).any():
        levels = np.linspace(low, high, LEVELS)
        axes.contour(steps, steps, losses, levels, colors="white", linewidths=0.5, alpha=0.7)
    axes.plot(0, 0, "+", color="white", markersize=8)
    axes.set_xlabel("first direction", fontsize=NORMAL)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MultipleLocator(steps[-1] / 2))
    return image


def _surface(axes: Any, steps: np.ndarray, losses: np.ndarray, low: float, high: float) -> ScalarMappable:
    across, up = np.meshgrid(steps, steps)
    drawn = axes.plot_surface(
        across, up, losses, cmap="viridis", vmin=low, vmax=high, linewidth=0, rstride=1, cstride=1
    )
    axes.set_zlim(low, high)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MultipleLocator(steps[-1]))
    axes.zaxis.set_major_locator(MaxNLocator(nbins=4))
    return drawn
