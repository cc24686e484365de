"""How learned step sizes move while a student trains."""

from __future__ import annotations

from matplotlib import colormaps
from matplotlib.figure import Figure

from qat_lightning.analysis.training_log import STEP_SIZES, StageHistory
from qat_lightning.reports.plots.style import NORMAL, SMALL, new_figure, tidy


def step_size_plot(stage: StageHistory) -> Figure | None:
    """A line for each layer, dark to bright with depth, relative to where it began; None where none was logged.

    Args:
        stage: with columns `step_sizes/<weights or activations>/<layer>`.
    """
    columns = list(dict.fromkeys(name for row in stage.rows for name in row if name.startswith(f"{STEP_SIZES}/")))
    if not columns:
        return None
    figure = new_figure(9.0, 3.4)
    places = list(dict.fromkeys(name.split("/")[2] for name in columns))
    colours = {place: colormaps["viridis"](0.9 * index / len(places)) for index, place in enumerate(places)}
    for axes, kind in zip(figure.subplots(1, 2), ("weights", "activations"), strict=True):
        tidy(axes)
        for name in (name for name in columns if name.split("/")[1] == kind):
            steps, values = stage.series(name)
            place = name.split("/")[2]
            relative = [value / values[0] for value in values]
            axes.plot(steps, relative, color=colours[place], linewidth=1.4, label=_named(place))
        axes.set_title(f"step sizes of {kind}", fontsize=NORMAL, loc="left")
        axes.set_xlabel("optimizer step", fontsize=NORMAL)
    figure.axes[0].set_ylabel("relative to the first", fontsize=NORMAL)
    named = {str(line.get_label()): line for axes in figure.axes for line in axes.lines}
    figure.legend(
        named.values(), named, loc="outside lower center", ncols=min(len(named), 8), fontsize=SMALL, frameon=False
    )
    return figure


def _named(place: str) -> str:
    """`layers.0` is layer 1, as in the other pictures."""
    kind, _, index = place.partition(".")
    return f"layer {int(index) + 1}" if kind == "layers" else place
