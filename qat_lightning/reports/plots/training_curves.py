"""Plot of loss and metric over the steps of all stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qat_lightning.analysis.training_log import StageHistory
from qat_lightning.reports.plots.style import (
    NORMAL,
    SMALL,
    STUDENT,
    TEACHER,
    UNTRAINED,
    add_legend,
    new_figure,
    scale_by_span,
    style_axes,
)

ASSISTED = "teacher-assisted (not the student's own)"
WIDTH = 9.0
CHARACTER = 0.085
"""Width in inches of a character in a stage's name, to find names that would overlap."""


def training_curves(
    history: Sequence[StageHistory], metric: str, teacher: float | None = None, untrained: float | None = None
) -> Figure:
    """Plot the loss (above) and the metric (below) over the optimizer steps (arXiv:2302.11812 Fig. 4a and 3c).

    The metric is in the columns `val/<metric>` and, teacher-assisted, `val_assisted/<metric>`; the scores of the teacher and of
    the PTQ baseline (`untrained`) are drawn as levels.
    """
    history = [stage for stage in history if stage.steps > 0]
    starts = [sum(stage.steps for stage in history[:index]) for index in range(len(history))]
    figure = new_figure(WIDTH, 5.6)
    loss, score = figure.subplots(2, 1, sharex=True)
    for axes in (loss, score):
        style_axes(axes)
    for start, stage in zip(starts, history, strict=True):
        _draw_loss(loss, stage, start)
        _draw_scores(score, stage, start, metric)
    for name, level, color, dashes in (
        ("teacher", teacher, TEACHER, "-."),
        ("PTQ baseline", untrained, UNTRAINED, ":"),
    ):
        if level is not None:
            score.axhline(level, color=color, linestyle=dashes, linewidth=1.3, label=f"{name}: {level:.3f}")
    heights = [float(height) for line in score.lines for height in np.ravel(line.get_ydata())]
    wide = min(heights, default=0) > 1 and scale_by_span(score, heights)  # a perplexity, not a share
    _fit_heights(score)
    logarithmic = scale_by_span(loss, (value for stage in history for value in stage.series("train/loss")[1]))
    loss.set_ylabel("training loss" + " (log scale)" * logarithmic, fontsize=NORMAL)
    scale = ", log scale" if wide else ""
    score.set_ylabel(f"{metric} (validation{scale})", fontsize=NORMAL, parse_math=False)
    score.set_xlabel("optimizer step, counted over all stages", fontsize=NORMAL)
    _mark_stages((loss, score), history, starts)
    loss.legend(*_named(loss), fontsize=SMALL, loc="best", framealpha=0.85, edgecolor="none")
    add_legend(figure, 3, dict(zip(*reversed(_named(score)), strict=True)), loc="outside lower center")
    return figure


def _draw_loss(axes: Axes, stage: StageHistory, start: int) -> None:
    steps, values = stage.series("train/loss")
    if not values:
        return
    color, name = STUDENT, "student (sum of the losses)"
    if stage.name == "teacher":
        color, name = TEACHER, "teacher's own training (another loss: the task's)"
    smooth, places = _running_mean(values, window=min(51, len(values) // 12)), [start + step for step in steps]
    axes.plot(places, values, color=color, linewidth=0.7, alpha=0.3)
    axes.plot(places, smooth, color=color, linewidth=1.7, label=name)


def _draw_scores(axes: Axes, stage: StageHistory, start: int, metric: str) -> None:
    of_teacher = stage.name == "teacher"
    color, marker = (TEACHER, "D") if of_teacher else (STUDENT, "o")
    own: dict[str, Any] = {"label": "teacher, during its own training" if of_teacher else "student's own"}
    assisted: dict[str, Any] = {"label": ASSISTED, "linestyle": "--", "markersize": 4.5, "markerfacecolor": "white"}
    for column, form in ((f"val/{metric}", own), (f"val_assisted/{metric}", assisted)):
        steps, values = stage.series(column)
        if values:
            common: dict[str, Any] = {"color": color, "marker": marker, "markersize": 3.5}
            axes.plot([start + step for step in steps], values, **(common | form))


def _fit_heights(axes: Axes) -> None:
    """Fit the axis to everything but the first half of the teacher's training, which would compress the rest."""
    lines = [(line.get_color(), np.ravel(line.get_ydata())) for line in axes.lines]
    if any(color == STUDENT for color, _ in lines):
        heights = np.concatenate([line[len(line) // 2 if color == TEACHER else 0 :] for color, line in lines])
        margin = 0.08 * np.ptp(heights) or 0.01
        if axes.get_yscale() == "log":
            axes.set_ylim(heights.min() / 1.2, heights.max() * 1.2)
        else:
            axes.set_ylim(heights.min() - margin, heights.max() + margin)


def _mark_stages(panels: tuple[Axes, Axes], history: Sequence[StageHistory], starts: Sequence[int]) -> None:
    """Draw boundaries through both panels, and names above the upper one, on a second line if they would overlap."""
    total = sum(stage.steps for stage in history)
    occupied: list[float] = []  # for each line of names, the end of its last name
    for index, (start, stage) in enumerate(zip(starts, history, strict=True)):
        for axes in panels:
            if index % 2:
                axes.axvspan(start, start + stage.steps, color="#F3F3F3", zorder=0, linewidth=0)
            if index:
                axes.axvline(start, color="#9A9A9A", linewidth=0.9)
        middle, half = start + stage.steps / 2, len(stage.name) * CHARACTER / 2 * total / (0.9 * WIDTH)
        line = next((line for line, end in enumerate(occupied) if middle - half > end), len(occupied))
        occupied[line : line + 1] = [middle + half]
        where = panels[0].get_xaxis_transform()
        panels[0].text(middle, 1.02 + 0.075 * line, stage.name, transform=where, ha="center", fontsize=NORMAL)
    panels[0].set_xlim(-0.01 * total, max(1.01 * total, 1))


def _named(axes: Axes) -> tuple[list[Line2D], list[str]]:
    """Return the lines of a legend and their names, each name once."""
    lines = {str(line.get_label()): line for line in axes.lines if not str(line.get_label()).startswith("_")}
    return list(lines.values()), list(lines)


def _running_mean(values: Sequence[float], window: int) -> Sequence[float]:
    """Average over a centered window, shorter at the ends."""
    if window < 2:
        return values
    ones = np.ones(window)
    return list(np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same"))
