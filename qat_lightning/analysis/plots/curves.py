"""Loss and metric over the steps of all stages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qat_lightning.analysis.history import StageHistory
from qat_lightning.analysis.plots.style import (
    NORMAL,
    SMALL,
    STUDENT,
    TEACHER,
    UNTRAINED,
    new_figure,
    scale_by_span,
    tidy,
)

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
    logarithmic = scale_by_span(loss, (value for stage in history for value in stage.series("train/loss")[1]))
    loss.set_ylabel("training loss" + " (log scale)" * logarithmic, fontsize=NORMAL)
    score.set_ylabel(f"{metric} (validation)", fontsize=NORMAL)
    score.set_xlabel("optimizer step, counted over all stages", fontsize=NORMAL)
    _mark_stages((loss, score), history, starts)
    for axes in (loss, score):
        _legend(axes)
    return figure


def _draw_loss(axes: Axes, stage: StageHistory, start: int) -> None:
    steps, values = stage.series("train/loss")
    of_teacher = stage.name == "teacher"
    colour = TEACHER if of_teacher else STUDENT
    name = "teacher's own training (another loss: the task's)" if of_teacher else "student (sum of the losses)"
    smooth = _running_mean(values, window=min(51, len(values) // 12))
    places = [start + step for step in steps]
    axes.plot(places, values, color=colour, linewidth=0.7, alpha=0.3)
    axes.plot(places, smooth, color=colour, linewidth=1.7, label=name)


def _draw_scores(axes: Axes, stage: StageHistory, start: int, metric: str) -> None:
    of_teacher = stage.name == "teacher"
    colour, marker = (TEACHER, "D") if of_teacher else (STUDENT, "o")
    steps, values = stage.series(f"val/{metric}")
    name = "teacher, during its own training" if of_teacher else "student's own"
    axes.plot([start + step for step in steps], values, color=colour, marker=marker, markersize=3.5, label=name)
    steps, values = stage.series(f"val_assisted/{metric}")
    places = [start + step for step in steps]
    name = "teacher-assisted (not the student's own)"
    axes.plot(
        places, values, color=STUDENT, linestyle="--", marker="o", markersize=5, markerfacecolor="white", label=name
    )


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


def _legend(axes: Axes) -> None:
    """Each name once, and only those with data."""
    handles = {str(line.get_label()): line for line in axes.lines if np.size(line.get_ydata())}
    named = {name: line for name, line in handles.items() if not name.startswith("_")}
    if named:
        axes.legend(list(named.values()), list(named), fontsize=SMALL, loc="best", framealpha=0.85, edgecolor="none")


def _running_mean(values: Sequence[float], window: int) -> Sequence[float]:
    """Centred; at the ends over what there is."""
    if window < 2:
        return values
    ones = np.ones(window)
    return list(np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same"))
