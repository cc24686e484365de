"""Loss and metric over the steps of all stages."""

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
    new_figure,
    scale_by_span,
    tidy,
)

ASSISTED = "teacher-assisted (not the student's own)"
WIDTH = 9.0
CHARACTER = 0.085
"""Inches; the width of a character in a stage's name, to tell whether two names would overlap."""


def training_curves(
    history: Sequence[StageHistory], metric: str, teacher: float | None = None, untrained: float | None = None
) -> Figure:
    """Above the loss, below the metric, over the optimizer steps of all stages (arXiv:2302.11812 Fig. 4a and 3c).

    Args:
        metric: read from the columns `val/<metric>` and, teacher-assisted, `val_assisted/<metric>`.
        teacher, untrained: their scores, drawn as levels; untrained is the student quantized without training.
    """
    history = [stage for stage in history if stage.steps > 0]
    starts = [sum(stage.steps for stage in history[:index]) for index in range(len(history))]
    figure = new_figure(WIDTH, 5.6)
    loss, score = figure.subplots(2, 1, sharex=True)
    for axes in (loss, score):
        tidy(axes)
    for start, stage in zip(starts, history, strict=True):
        _draw_loss(loss, stage, start)
        _draw_scores(score, stage, start, metric)
    _draw_levels(score, {"teacher": teacher, "quantized, not trained": untrained})
    heights = [float(height) for line in score.lines for height in np.ravel(line.get_ydata())]
    wide = min(heights, default=0) > 1 and scale_by_span(score, heights)  # a perplexity, not a share
    _leave_out_beginnings(score)
    logarithmic = scale_by_span(loss, (value for stage in history for value in stage.series("train/loss")[1]))
    loss.set_ylabel("training loss" + " (log scale)" * logarithmic, fontsize=NORMAL)
    score.set_ylabel(
        f"{metric} (validation" + ", log scale)" * wide + ")" * (not wide), fontsize=NORMAL, parse_math=False
    )
    score.set_xlabel("optimizer step, counted over all stages", fontsize=NORMAL)
    _mark_stages((loss, score), history, starts)
    loss.legend(*_named(loss), fontsize=SMALL, loc="best", framealpha=0.85, edgecolor="none")
    # Outside: five names would hide the curves.
    figure.legend(*_named(score), fontsize=SMALL, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_loss(axes: Axes, stage: StageHistory, start: int) -> None:
    steps, values = stage.series("train/loss")
    of_teacher = stage.name == "teacher"
    colour = TEACHER if of_teacher else STUDENT
    name = "teacher's own training (another loss: the task's)" if of_teacher else "student (sum of the losses)"
    smooth = _running_mean(values, window=min(51, len(values) // 12))
    if not values:
        return
    places = [start + step for step in steps]
    axes.plot(places, values, color=colour, linewidth=0.7, alpha=0.3)
    axes.plot(places, smooth, color=colour, linewidth=1.7, label=name)


def _draw_scores(axes: Axes, stage: StageHistory, start: int, metric: str) -> None:
    of_teacher = stage.name == "teacher"
    colour, marker = (TEACHER, "D") if of_teacher else (STUDENT, "o")
    own: dict[str, Any] = {"label": "teacher, during its own training" if of_teacher else "student's own"}
    assisted: dict[str, Any] = {"label": ASSISTED, "linestyle": "--", "markersize": 4.5, "markerfacecolor": "white"}
    for column, form in ((f"val/{metric}", own), (f"val_assisted/{metric}", assisted)):
        steps, values = stage.series(column)
        if values:
            common: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 3.5}
            axes.plot([start + step for step in steps], values, **(common | form))


def _leave_out_beginnings(axes: Axes) -> None:
    """Heights for all but the first half of the teacher's own training, which would press the rest together."""
    lines = [(line.get_color(), np.ravel(line.get_ydata())) for line in axes.lines]
    if any(colour == STUDENT for colour, _ in lines):
        held = np.concatenate([line[len(line) // 2 if colour == TEACHER else 0 :] for colour, line in lines])
        margin = 0.08 * np.ptp(held) or 0.01
        if axes.get_yscale() == "log":
            axes.set_ylim(held.min() / 1.2, held.max() * 1.2)
        else:
            axes.set_ylim(held.min() - margin, held.max() + margin)


def _draw_levels(axes: Axes, levels: dict[str, float | None]) -> None:
    for (name, level), colour, dashes in zip(levels.items(), (TEACHER, UNTRAINED), ("-.", ":"), strict=True):
        if level is not None:
            axes.axhline(level, color=colour, linestyle=dashes, linewidth=1.3, label=f"{name}: {level:.3f}")


def _mark_stages(panels: tuple[Axes, Axes], history: Sequence[StageHistory], starts: Sequence[int]) -> None:
    """Boundaries through both panels, names above the upper one, on a second line where they would overlap."""
    total = sum(stage.steps for stage in history)
    occupied: list[float] = []  # for each line of names, where its last name ends
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
    """The lines that a legend names, each name once."""
    lines = {str(line.get_label()): line for line in axes.lines if not str(line.get_label()).startswith("_")}
    return list(lines.values()), list(lines)


def _running_mean(values: Sequence[float], window: int) -> Sequence[float]:
    """Centred; at the ends over what there is."""
    if window < 2:
        return values
    ones = np.ones(window)
    return list(np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same"))
