"""One look for all pictures: a model has the same colour and marker everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind tell apart; the teacher is the grey line to compare with.
TEACHER, UNTRAINED, STUDENT = "#6E6E6E", "#D55E00", "#0072B2"
OTHERS = ("#009E73", "#CC79A7", "#E69F00")
DOTS_PER_INCH = 120
SMALL, NORMAL = 8, 9
WIDE_SPAN = 20.0
"""A quantity whose largest value is more than so many times its smallest is drawn on a logarithmic axis."""


@contextmanager
def own_look() -> Iterator[None]:
    """Within the block, matplotlib's own defaults: a user's matplotlibrc can ask for LaTeX, or for a format of its own."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def new_figure(width: float, height: float) -> Figure:
    """Width and height in inches; 9 inches fill a Markdown page."""
    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")


def look(name: str, position: int = 0) -> tuple[str, str]:
    """(colour, marker) of a model by its name; `position` tells further names apart."""
    for word, colour, marker in (
        ("untrained", UNTRAINED, "s"),
        ("not trained", UNTRAINED, "s"),
        ("teacher", TEACHER, "D"),
        ("student", STUDENT, "o"),
    ):
        if word in name.lower():
            return colour, marker
    return OTHERS[position % len(OTHERS)], "^v>"[position % 3]


def tidy(axes: Axes) -> None:
    """A light grid behind the data, no frame above and to the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL)
    axes.grid(color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)


def scale_by_span(axes: Axes, values: Iterable[float]) -> bool:
    """Take a logarithmic axis where the values need one; says whether they did."""
    positive = [value for value in values if value > 0]
    wide = bool(positive) and max(positive) > WIDE_SPAN * min(positive)
    if wide:
        axes.set_yscale("log")
    return wide
