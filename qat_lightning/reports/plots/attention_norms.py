"""Norm-based attention, the students' distance from the teacher by token class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from qat_lightning.reports.plots.style import NORMAL, SMALL, look, new_figure, tidy

TITLES = {"weight": "α", "transformed": "‖f(x)‖", "weighted": "‖αf(x)‖", "summed": "‖Σ αf(x)‖, over heads"}


def norm_plot(differences: Mapping[str, Mapping[str, Mapping[str, Tensor]]]) -> Figure:
    """|mean of the teacher − mean of the student| by token class, mean over layers and heads (arXiv:2211.11014 Fig. 6).

    Args:
        differences: name of a student → quantity → token class → (L, H), see `qat_lightning.analysis.norm_differences`.
    """
    figure = new_figure(9.0, 2.9)
    panels = figure.subplots(1, len(TITLES))
    width = 0.8 / len(differences)
    for axes, (quantity, title) in zip(panels, TITLES.items(), strict=True):
        tidy(axes)
        axes.grid(visible=False, axis="x")
        axes.set_title(title, fontsize=NORMAL, loc="left")
        for position, (name, of_student) in enumerate(differences.items()):
            heights = [float(of_class.mean()) for of_class in of_student[quantity].values()]
            places = np.arange(len(heights)) + (position - (len(differences) - 1) / 2) * width
            label = name if axes is panels[0] else None
            axes.bar(places, heights, 0.9 * width, color=look(name, position)[0], label=label)
            axes.set_xticks(range(len(heights)), list(of_student[quantity]), rotation=40, ha="right", fontsize=SMALL)
            axes.tick_params(axis="x", length=0, rotation=40)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    panels[0].set_ylabel("|teacher − student|", fontsize=NORMAL)
    figure.legend(loc="outside upper center", ncols=len(differences), fontsize=SMALL, frameon=False)
    return figure
