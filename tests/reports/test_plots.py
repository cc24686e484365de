"""The plots show the numbers that they are given."""

import math
from typing import Any

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from qat_lightning.analysis.loss_landscape import Landscape
from qat_lightning.analysis.training_log import StageHistory
from qat_lightning.reports import plots
from qat_lightning.reports.plots.style import STUDENT, TEACHER, UNTRAINED

COLORS = {"teacher": TEACHER, "PTQ baseline": UNTRAINED, "student": STUDENT}
NAN = math.nan


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for owner in figure.legends for text in owner.get_texts()]


def colors(artists: list[Any]) -> list[str]:
    return [to_hex(artist.get_color()).upper() for artist in artists]


def stage(name: str, steps: int, loss: float, **scores: float) -> StageHistory:
    """Log a loss at each step, and the scores at the last."""
    rows = [{"step": float(step), "train/loss": loss} for step in range(steps)]
    rows[-1] |= {f"{kind}/accuracy": score for kind, score in scores.items()}
    return StageHistory(name, steps, rows)


HISTORY = [
    stage("teacher", 880, 1.0, val=0.9),
    stage("intervene", 60, 2.0, val=0.5, val_assisted=0.85),
    stage("train", 600, 3.0, val=0.8),
]


def test_training_curves_count_steps_over_all_stages_and_distinguish_scores() -> None:
    figure = plots.training_curves(HISTORY, "accuracy", teacher=0.9, untrained=0.1)
    ends = [line.get_xdata()[-1] for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    assert sorted(set(ends)) == [879, 939, 1539]
    lines: dict[str, Any] = {str(line.get_label()): line for line in figure.axes[1].lines}
    own, assisted = lines["student's own"], lines["teacher-assisted (not the student's own)"]
    assert (own.get_xdata()[-1], assisted.get_xdata()[-1]) == (1539, 939)
    assert (own.get_linestyle(), assisted.get_linestyle()) == ("-", "--")
    assert (own.get_markerfacecolor(), assisted.get_markerfacecolor()) == (STUDENT, "white")
    assert lines["teacher: 0.900"].get_color() == TEACHER
    assert lines["PTQ baseline: 0.100"].get_ydata()[0] == 0.1


def test_training_curves_are_not_compressed_by_the_teachers_first_scores() -> None:
    rows = [{"step": float(step), "val/accuracy": score} for step, score in enumerate((0.1, 0.2, 0.95, 0.9))]
    history = [StageHistory("teacher", 4, rows), stage("train", 9, 1.0, val=0.8)]
    low, high = plots.training_curves(history, "accuracy", teacher=0.9, untrained=0.6).axes[1].get_ylim()
    assert 0.5 < low < 0.6
    assert 0.95 < high < 1.0
    assert plots.training_curves(history[:1], "accuracy").axes[1].get_ylim()[0] < 0.1


@pytest.mark.parametrize(("last", "scale"), [(19.0, "linear"), (21.0, "log")])
def test_wide_loss_has_a_logarithmic_axis(last: float, scale: str) -> None:
    figure = plots.training_curves([stage("teacher", 9, 1.0), stage("train", 9, last)], "accuracy")
    assert figure.axes[0].get_yscale() == scale


@pytest.mark.parametrize("steps", [(880, 60, 600), (10, 10, 5000), (1, 1, 1)])
def test_stage_names_do_not_overlap(steps: tuple[int, int, int]) -> None:
    names = ("teacher", "intervene", "train")
    history = [stage(name, count, 1.0) for name, count in zip(names, steps, strict=True)]
    figure = plots.training_curves(history, "accuracy")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 3
    assert not any(one.overlaps(other) for one in boxes for other in boxes if one is not other)


def test_layer_errors_have_a_line_for_each_model() -> None:
    (axes,) = plots.layer_error_plot({"PTQ baseline": [0.0, 2.0, 3.0], "student": [0.0, 1.0, 1.0]}).axes
    assert colors(axes.lines) == [UNTRAINED, STUDENT]
    assert (list(axes.lines[0].get_xdata()), axes.get_yscale()) == ([0, 1, 2], "linear")
    (axes,) = plots.layer_error_plot({"PTQ baseline": [0.0, 50.0], "student": [0.0, 1.0]}).axes
    assert [str(height) for height in axes.lines[0].get_ydata()] == ["nan", "50.0"]  # no 0 on a logarithmic axis


def maps(layers: int, tokens: int = 5, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(2, tokens, tokens, generator=generator).softmax(-1) for _ in range(layers)]


@pytest.mark.parametrize(("layers", "rows"), [(1, [0]), (6, [0, 3, 5])])
def test_maps_have_a_column_for_each_model_and_a_few_layers(layers: int, rows: list[int]) -> None:
    models = {"teacher": maps(layers), "untrained": maps(layers, seed=1), "student": maps(layers, seed=2)}
    images = [axes.images[0] for axes in plots.attention_map_plot(models).axes if axes.images]
    assert len(images) == 3 * len(rows)
    for row, layer in enumerate(rows):
        shown = images[3 * row : 3 * row + 3]
        for image, given in zip(shown, models.values(), strict=True):
            assert torch.equal(torch.from_numpy(image.get_array().data), given[layer].mean(0))
        assert {image.get_clim() for image in shown} == {
            (0, max(float(m[layer].mean(0).max()) for m in models.values()))
        }


def test_tokens_are_shown_as_text() -> None:
    names = ["[CLS]", "$5", "and", "$x_1$", "[SEP]"]
    axes = plots.attention_map_plot({"teacher": maps(3), "student": maps(3)}, names).axes
    assert [label.get_text() for label in axes[0].get_yticklabels()] == names
    assert not axes[0].get_yticklabels()[3].get_parse_math()
    with pytest.raises(ValueError, match="4 tokens"):
        plots.attention_map_plot({"student": maps(3)}, names[:4])
    labels = plots.attention_map_plot({"student": maps(1, 100)}, [*map(str, range(100))]).axes[0].get_yticklabels()
    assert 10 < len(labels) < 60  # only some of many tokens


def test_maps_of_models_of_different_depth_are_named_by_position() -> None:
    axes = plots.attention_map_plot({"teacher": maps(12), "student": maps(4)}).axes
    assert [axes[row].get_ylabel() for row in (0, 2, 4)] == ["first layer", "middle layer", "last layer"]


def test_panels_have_a_line_for_each_model_and_name_it_once() -> None:
    two = {"PTQ baseline": [3.0, 2.0], "student": [1.0, 0.5]}
    figure = plots.layer_panels_plot({"ranking loss": two, "attention distance": {"teacher": [4.0, 5.0]} | two})
    first, second = figure.axes
    assert legend(figure) == list(COLORS)
    assert (colors(first.lines), colors(second.lines)) == ([UNTRAINED, STUDENT], [TEACHER, UNTRAINED, STUDENT])
    assert (list(first.lines[1].get_xdata()), list(first.lines[1].get_ydata())) == ([1, 2], [1.0, 0.5])
    figure = plots.layer_panels_plot({f"{index}": {"student": [1.0, 0.0, 0.001]} for index in range(4)})
    assert len([axes for axes in figure.axes if axes.get_visible()]) == 4
    assert figure.axes[0].get_yscale() == "log"


def ranges(low: float, high: float) -> list[torch.Tensor]:
    """Return two layers of two tokens."""
    return [torch.tensor([[low, high], [low - 2, high + 4]]), torch.tensor([[low, high], [low, high]])]


def test_ranges_are_bands_of_means_and_extremes() -> None:
    figure = plots.dynamic_range_plot({"teacher": ranges(-1.0, 1.0), "student": ranges(-3.0, 2.0)}, clip=2.5)
    (axes,) = figure.axes
    bars: dict[str, Any] = {"teacher": axes.containers[:2], "student": axes.containers[2:]}
    assert legend(figure) == ["clip", "teacher", "student"]
    for name, (low, high) in {"teacher": (-1.0, 1.0), "student": (-3.0, 2.0)}.items():
        extremes, means = ([(bar.get_y(), bar.get_y() + bar.get_height()) for bar in kind] for kind in bars[name])
        assert (extremes, means) == ([(low - 2, high + 4), (low, high)], [(low - 1, high + 2), (low, high)])
        assert to_hex(bars[name][1][0].get_facecolor()).upper() == COLORS[name]


def test_norms_are_bars_by_token_class() -> None:
    quantities = ("weight", "transformed", "weighted", "summed")
    given = {
        name: {kind: {"[CLS]": torch.full((2, 4), size), "all": torch.full((2, 4), 2 * size)} for kind in quantities}
        for name, size in (("PTQ baseline", 1.0), ("student", 0.5))
    }
    figure = plots.norm_plot(given)
    assert len(figure.axes) == 4
    for axes in figure.axes:
        assert [[bar.get_height() for bar in bars] for bars in axes.containers] == [[1, 2], [0.5, 1]]  # type: ignore
        assert [label.get_text() for label in axes.get_xticklabels()] == ["[CLS]", "all"]


def test_eigenvalues_are_split_by_sign_and_normalized() -> None:
    values = [*torch.logspace(-1, 2, 40).tolist(), *[-value for value in torch.logspace(0, 1, 12).tolist()]]
    negative, positive = plots.spectrum_plot({"teacher": values, "student": [5.0, 6.0]}).axes
    assert [text.get_text() for text in negative.get_legend().get_texts()] == ["teacher (12)"]
    assert [text.get_text() for text in positive.get_legend().get_texts()] == ["teacher (40)", "student (2)"]
    for axes in (negative, positive):
        bars: list[Any] = list(axes.patches)
        area = sum(bar.get_height() * math.log10((bar.get_x() + bar.get_width()) / bar.get_x()) for bar in bars)
        assert area == pytest.approx(1, rel=1e-6)
    titles = [[axes.get_title(loc="left") for axes in plots.spectrum_plot({"a": v}).axes] for v in ([1.0], [-1.0], [])]
    assert titles == [["positive eigenvalues"], ["negative eigenvalues"], ["no eigenvalues"]]


def landscape(height: float, points: int = 5) -> Landscape:
    steps = [2 * index / (points - 1) - 1 for index in range(points)]
    return Landscape(steps, [[height * (x * x + 2 * y * y) for x in steps] for y in steps])


def test_landscapes_share_one_color_scale() -> None:
    figure = plots.landscape_plot({"teacher": landscape(1), "PTQ baseline": landscape(5), "student": landscape(2)})
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels] == list(COLORS)
    assert {axes.images[0].get_clim() for axes in panels} == {(0, 15)}
    assert panels[2].images[0].get_array()[0, 2] == 2 * 2  # first row: y = −1, x = 0
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"{count} landscapes"):
            plots.landscape_plot({str(index): landscape(1) for index in range(count)})


LOST = Landscape([-1.0, 0.0, 1.0], [[NAN] * 3] * 3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.training_curves([], "accuracy"),
        lambda: plots.training_curves([StageHistory("train", 5, [])], "accuracy"),
        lambda: plots.layer_panels_plot({"map KL": {"student": [NAN, 2.0]}, "zero": {"student": [0.0, 0.0]}}),
        lambda: plots.dynamic_range_plot({"student": [torch.full((3, 2), NAN), torch.tensor([[-1.0, 1.0]])]}),
        lambda: plots.spectrum_plot({"teacher": [], "student": [2.0] * 9}),
        lambda: plots.landscape_plot({"teacher": LOST, "student": landscape(1, 3)}),
        lambda: plots.landscape_plot({"student": Landscape([-1.0, 0.0, 1.0], [[2.0] * 3] * 3)}),
    ],
)
def test_empty_constant_and_non_finite_values_can_be_drawn(draw: Any) -> None:
    draw().draw_without_rendering()
