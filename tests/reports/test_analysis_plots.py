"""The pictures of the papers' analyses show the numbers they are given."""

import math

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from qat_lightning.analysis.loss_landscape import Landscape
from qat_lightning.reports.plots.attention_norms import norm_plot
from qat_lightning.reports.plots.dynamic_range import dynamic_range_plot
from qat_lightning.reports.plots.hessian_spectrum import spectrum_plot
from qat_lightning.reports.plots.loss_landscape import landscape_plot
from qat_lightning.reports.plots.panels import layer_panels_plot
from qat_lightning.reports.plots.style import STUDENT, TEACHER, UNTRAINED

NAMES = {"teacher": TEACHER, "quantized, not trained": UNTRAINED, "student": STUDENT}


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for owner in figure.legends for text in owner.get_texts()]


def colours(artists: list) -> list[str]:
    return [to_hex(artist.get_color()).upper() for artist in artists]


def test_panels_have_a_line_for_each_model_and_name_it_once() -> None:
    two = {"quantized, not trained": [3.0, 2.0], "student": [1.0, 0.5]}
    figure = layer_panels_plot({"ranking loss": two, "attention distance": {"teacher": [4.0, 5.0]} | two})
    first, second = figure.axes
    assert legend(figure) == list(NAMES)
    assert colours(first.lines) == [UNTRAINED, STUDENT]
    assert colours(second.lines) == [TEACHER, UNTRAINED, STUDENT]
    assert list(first.lines[1].get_xdata()) == [1, 2]
    assert list(first.lines[1].get_ydata()) == [1.0, 0.5]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["ranking loss", "attention distance"]
    assert first.get_ylim() == pytest.approx((0, 1.08 * 3))
    assert first.get_xlabel() == second.get_xlabel() == "layer"


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 1), (4, 2), (6, 2)])
def test_panels_stand_in_rows_of_three(count: int, rows: int) -> None:
    figure = layer_panels_plot({f"measure {index}": {"student": [1.0, 2.0]} for index in range(count)})
    assert len([axes for axes in figure.axes if axes.get_visible()]) == count
    assert figure.get_figheight() == pytest.approx(2.5 * rows + 0.35)
    labelled = [axes for axes in figure.axes if axes.get_xlabel() == "layer"]
    assert len(labelled) == min(count, 3)


def test_a_wide_measure_is_drawn_on_a_logarithmic_axis() -> None:
    figure = layer_panels_plot({"map KL": {"student": [1.0, 0.0, 0.001]}, "mass": {"student": [1.0, 0.9, 0.8]}})
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"]
    assert math.isnan(figure.axes[0].lines[0].get_ydata()[1])


def ranges(low: float, high: float) -> list[torch.Tensor]:
    """Two layers of two tokens."""
    return [torch.tensor([[low, high], [low - 2, high + 4]]), torch.tensor([[low, high], [low, high]])]


def test_ranges_are_bands_of_means_and_extremes() -> None:
    figure = dynamic_range_plot({"teacher": ranges(-1.0, 1.0), "student": ranges(-3.0, 2.0)}, clip=2.5)
    (axes,) = figure.axes
    bars = {"teacher": axes.containers[:2], "student": axes.containers[2:]}
    assert legend(figure) == ["clip", "teacher", "student"]
    for name, (low, high) in {"teacher": (-1.0, 1.0), "student": (-3.0, 2.0)}.items():
        extremes, means = ([(bar.get_y(), bar.get_y() + bar.get_height()) for bar in kind] for kind in bars[name])
        assert extremes == [(low - 2, high + 4), (low, high)]
        assert means == [(low - 1, high + 2), (low, high)]
        assert to_hex(bars[name][1][0].get_facecolor()).upper() == NAMES[name]
    centres = [[bar.get_x() + bar.get_width() / 2 for bar in bars[name][0]] for name in bars]
    assert centres == [pytest.approx([0.8, 1.8]), pytest.approx([1.2, 2.2])]


def test_norms_are_bars_by_token_class() -> None:
    quantities = ("weight", "transformed", "weighted", "summed")
    given = {
        name: {kind: {"[CLS]": torch.full((2, 4), size), "all": torch.full((2, 4), 2 * size)} for kind in quantities}
        for name, size in (("quantized, not trained", 1.0), ("student", 0.5))
    }
    figure = norm_plot(given)
    assert len(figure.axes) == 4
    for axes in figure.axes:
        assert [[bar.get_height() for bar in bars] for bars in axes.containers] == [[1, 2], [0.5, 1]]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["[CLS]", "all"]
    assert legend(figure) == ["quantized, not trained", "student"]


def test_eigenvalues_are_split_by_sign_and_have_the_area_one() -> None:
    values = [*torch.logspace(-1, 2, 40).tolist(), *[-value for value in torch.logspace(0, 1, 12).tolist()]]
    figure = spectrum_plot({"teacher": values, "student": [5.0, 6.0]})
    negative, positive = figure.axes
    assert [text.get_text() for text in negative.get_legend().get_texts()] == ["teacher (12)"]
    assert [text.get_text() for text in positive.get_legend().get_texts()] == ["teacher (40)", "student (2)"]
    for axes in (negative, positive):
        area = sum(bar.get_height() * math.log10((bar.get_x() + bar.get_width()) / bar.get_x()) for bar in axes.patches)
        assert area == pytest.approx(1, rel=1e-6)
        assert axes.get_xscale() == "log"
    (ticks,) = [line for line in positive.lines if line.get_marker() == "|"]
    assert list(ticks.get_xdata()) == pytest.approx([5, 6])


def test_a_sign_that_none_has_gets_no_panel() -> None:
    (positive,) = spectrum_plot({"student": [1.0, 2.0, 3.0]}).axes
    assert positive.get_title(loc="left") == "positive eigenvalues"
    assert list(positive.get_yticks()) == []  # too few for a density
    (negative,) = spectrum_plot({"student": [-1.0, -2.0]}).axes
    assert negative.get_title(loc="left") == "negative eigenvalues"
    assert [axes.get_title(loc="left") for axes in spectrum_plot({"student": []}).axes] == ["no eigenvalues"]


def landscape(height: float, points: int = 5) -> Landscape:
    steps = [2 * index / (points - 1) - 1 for index in range(points)]
    return Landscape(steps, [[height * (x * x + 2 * y * y) for x in steps] for y in steps])


def test_landscapes_share_one_colour_scale() -> None:
    figure = landscape_plot({"teacher": landscape(1), "quantized, not trained": landscape(5), "student": landscape(2)})
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels] == list(NAMES)
    assert {axes.images[0].get_clim() for axes in panels} == {(0, 15)}
    assert panels[2].images[0].get_array()[0, 2] == 2 * 2  # first row: y = −1, x = 0
    assert panels[0].images[0].get_extent() == [-1, 1, -1, 1]
    assert [tick for tick in panels[0].get_yticks() if -1 <= tick <= 1] == [-1, -0.5, 0, 0.5, 1]


def test_landscapes_may_be_surfaces() -> None:
    figure = landscape_plot({"teacher": landscape(1), "student": landscape(2)}, surface=True)
    panels = [axes for axes in figure.axes if axes.name == "3d"]
    assert len(panels) == 2
    assert panels[0].get_zlim() == panels[1].get_zlim()
    assert panels[0].get_zlim()[1] == pytest.approx(6, rel=0.05)


@pytest.mark.parametrize("count", [0, 4])
def test_landscapes_side_by_side_are_one_to_three(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} landscapes: give one to three"):
        landscape_plot({str(index): landscape(1) for index in range(count)})


@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_or_all_alike_can_be_drawn() -> None:
    nan = math.nan
    lost = Landscape([-1.0, 0.0, 1.0], [[nan] * 3] * 3)
    flat = Landscape([-1.0, 0.0, 1.0], [[2.0] * 3] * 3)
    for figure in (
        layer_panels_plot({"map KL": {"student": [nan, nan]}, "zero": {"student": [0.0, 0.0]}}),
        layer_panels_plot({"map KL": {"student": [nan, 2.0]}}),
        dynamic_range_plot({"student": [torch.full((3, 2), nan), torch.tensor([[-1.0, 1.0]])]}),
        spectrum_plot({"teacher": [], "student": []}),
        spectrum_plot({"student": [2.0] * 9}),
        landscape_plot({"student": lost}),
        landscape_plot({"teacher": lost, "student": landscape(1, 3)}),
        landscape_plot({"student": flat}),
    ):
        figure.draw_without_rendering()
