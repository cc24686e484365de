"""The error of each layer's output, first to last."""

from __future__ import annotations

import math
from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qat_lightning.reports.plots.style import NORMAL, SMALL, look, new_figure, scale_by_span, tidy


def layer_error_plot(errors: Mapping[str, list[float]], site: str = "hidden") -> Figure:
    """Mean squared error against the teacher over depth, a line for each model (arXiv:2302.11812 Fig. 2b).

    Args:
        errors: name ("quantized, not trained", "student") → one error for each signal of `site`.
        site: `hidden` begins with the embeddings, layer 0; the other sites with layer 1.
    """
    figure = new_figure(8.0, 3.6)
    axes = figure.subplots()
    tidy(axes)
    logarithmic = scale_by_span(axes, (error for line in errors.values() for error in line))
    first = 0 if site == "hidden" else 1
    for position, (name, line) in enumerate(errors.items()):
        colour, marker = look(name, position)
        # No place on a logarithmic axis for an exact 0 (nothing quantized so far): a gap.
        heights = [math.nan if logarithmic and error <= 0 else error for error in line]
        axes.plot(range(first, first + len(line)), heights, color=colour, marker=marker, markersize=5, label=name)
    if not logarithmic:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=14))
    axes.set_xlabel("layer (0: embeddings)" if first == 0 else "layer", fontsize=NORMAL)
    axes.set_ylabel("mean squared error" + " (log scale)" * logarithmic, fontsize=NORMAL)
    figure.legend(loc="outside upper center", ncols=max(len(errors), 1), fontsize=SMALL, frameon=False)
    return figure
