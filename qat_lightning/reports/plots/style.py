"""One style for all plots: a model has the same color and marker everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Okabe and Ito's colors, which color-blind readers can distinguish; the teacher is grey, as the reference.
TEACHER, UNTRAINED, STUDENT = "#6E6E6E", "#D55E00", "#0072B2"
OTHERS = ("#009E73", "#CC79A7", "#E69F00")
STYLES = {
    "untrained": (UNTRAINED, "s"),
    "baseline": (UNTRAINED, "s"),
    "teacher": (TEACHER, "D"),
    "student": (STUDENT, "o"),
}
DOTS_PER_INCH = 120
SMALL, NORMAL = 8, 9
WIDE_SPAN = 20.0
"""A quantity is drawn on a logarithmic axis if its largest value is more than this many times its smallest."""


@contextmanager
def default_style() -> Iterator[None]:
    """Use matplotlib's own defaults in the block: a user's matplotlibrc may ask for LaTeX or for another file format."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def new_figure(width: float, height: float) -> Figure:
    """Create a figure outside matplotlib's global state; width and height in inches, 9 inches fill a Markdown page."""
    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")


def style_of(name: str, position: int = 0) -> tuple[str, str]:
    """Return (color, marker) of a model by its name; `position` distinguishes other names."""
    found = (style for word, style in STYLES.items() if word in name.lower())
    return next(found, (OTHERS[position % len(OTHERS)], "^v>"[position % 3]))


def style_axes(axes: Axes) -> None:
    """Draw a light grid behind the data, and no frame above and to the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL)
    axes.grid(color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)


def add_legend(
    figure: Figure, columns: int, lines: Mapping[str, Line2D] | None = None, loc: str = "outside upper center"
) -> None:
    """Add a legend outside of the axes, of `lines` by name, or of all labelled lines."""
    named: tuple[Any, ...] = () if lines is None else (list(lines.values()), list(lines))
    figure.legend(*named, loc=loc, ncols=columns, fontsize=SMALL, frameon=False)  # type: ignore[call-overload]


def scale_by_span(axes: Axes, values: Iterable[float]) -> bool:
    """Use a logarithmic axis if the values need one, and return whether they do."""
    positive = [value for value in values if value > 0]
    wide = bool(positive) and max(positive) > WIDE_SPAN * min(positive)
    if wide:
        axes.set_yscale("log")
    return wide
