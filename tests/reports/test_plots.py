import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from qat_lightning.analysis.training_log import StageHistory
from qat_lightning.reports.plots.attention_maps import attention_map_plot
from qat_lightning.reports.plots.layer_errors import layer_error_plot
from qat_lightning.reports.plots.style import STUDENT, TEACHER, UNTRAINED
from qat_lightning.reports.plots.training_curves import training_curves


def stage(name: str, steps: int, loss: float, **scores: float) -> StageHistory:
    """A loss at each step, the scores at the last."""
    rows = [{"step": float(step), "train/loss": loss} for step in range(steps)]
    rows[-1] |= {f"{kind}/accuracy": score for kind, score in scores.items()}
    return StageHistory(name, steps, rows)


HISTORY = [
    stage("teacher", 880, 1.0, val=0.9),
    stage("intervene", 60, 2.0, val=0.5, val_assisted=0.85),
    stage("train", 600, 3.0, val=0.8),
]


def labelled(figure: Figure, panel: int) -> dict[str, object]:
    return {str(line.get_label()): line for line in figure.axes[panel].lines}


def test_steps_are_counted_over_all_stages() -> None:
    figure = training_curves(HISTORY, "accuracy")
    ends = [line.get_xdata()[-1] for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    assert sorted(set(ends)) == [879, 939, 1539]
    scores = {name: line.get_xdata()[-1] for name, line in labelled(figure, 1).items() if len(line.get_xdata()) == 1}
    assert scores == {
        "teacher, during its own training": 879,
        "teacher-assisted (not the student's own)": 939,
        "student's own": 1539,
    }


def test_own_and_assisted_scores_and_levels_look_different() -> None:
    lines = labelled(training_curves(HISTORY, "accuracy", teacher=0.9, untrained=0.1), 1)
    own, assisted = lines["student's own"], lines["teacher-assisted (not the student's own)"]
    assert (own.get_linestyle(), assisted.get_linestyle()) == ("-", "--")
    assert (own.get_markerfacecolor(), assisted.get_markerfacecolor()) == (STUDENT, "white")
    assert lines["teacher: 0.900"].get_color() == TEACHER
    assert lines["quantized, not trained: 0.100"].get_ydata()[0] == 0.1


def test_the_legends_name_what_is_drawn_and_only_that() -> None:
    figure = training_curves([stage("train", 50, 1.0, val=0.8)], "accuracy")
    legends = [
        [text.get_text() for text in owner.get_texts()] for owner in (figure.axes[0].get_legend(), *figure.legends)
    ]
    assert legends == [["student (sum of the losses)"], ["student's own"]]


def test_the_teachers_beginnings_do_not_press_the_rest_together() -> None:
    rows = [{"step": float(step), "val/accuracy": score} for step, score in enumerate((0.1, 0.2, 0.95, 0.9))]
    history = [StageHistory("teacher", 4, rows), stage("train", 9, 1.0, val=0.8)]
    low, high = training_curves(history, "accuracy", teacher=0.9, untrained=0.6).axes[1].get_ylim()
    assert 0.5 < low < 0.6
    assert 0.95 < high < 1.0
    assert training_curves(history[:1], "accuracy").axes[1].get_ylim()[0] < 0.1  # a run that only makes a teacher


@pytest.mark.parametrize(("last", "scale"), [(19.0, "linear"), (21.0, "log")])
def test_a_wide_loss_is_drawn_on_a_logarithmic_axis(last: float, scale: str) -> None:
    figure = training_curves([stage("teacher", 9, 1.0), stage("train", 9, last)], "accuracy")
    assert figure.axes[0].get_yscale() == scale


@pytest.mark.parametrize("steps", [(880, 60, 600), (10, 10, 5000), (5000, 10, 10), (10, 5000, 10), (1, 1, 1)])
def test_stage_names_do_not_overlap(steps: tuple[int, int, int]) -> None:
    names = ("teacher", "intervene", "train")
    figure = training_curves([stage(name, count, 1.0) for name, count in zip(names, steps, strict=True)], "accuracy")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 3
    assert not any(one.overlaps(other) for one in boxes for other in boxes if one is not other)
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)


def test_curves_without_rows_or_stages_are_empty() -> None:
    for history in ([], [StageHistory("train", 5, [])], [StageHistory("export", 0, [])]):
        figure = training_curves(history, "accuracy")
        assert not figure.axes[0].get_legend().get_texts()
        figure.draw_without_rendering()


def test_errors_have_one_line_for_each_model_in_its_colour() -> None:
    (axes,) = layer_error_plot({"quantized, not trained": [0.0, 2.0, 3.0], "student": [0.0, 1.0, 1.0]}).axes
    assert [to_hex(line.get_color()).upper() for line in axes.lines] == [UNTRAINED, STUDENT]
    assert list(axes.lines[0].get_xdata()) == [0, 1, 2]
    assert axes.get_yscale() == "linear"
    assert list(layer_error_plot({"student": [1.0, 2.0]}, "attention.output").axes[0].lines[0].get_xdata()) == [1, 2]


def test_a_zero_has_no_place_on_a_logarithmic_axis() -> None:
    (axes,) = layer_error_plot({"quantized, not trained": [0.0, 50.0], "student": [0.0, 1.0]}).axes
    assert axes.get_yscale() == "log"
    assert [str(height) for height in axes.lines[0].get_ydata()] == ["nan", "50.0"]


def maps(layers: int, tokens: int = 5, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(2, tokens, tokens, generator=generator).softmax(-1) for _ in range(layers)]


@pytest.mark.parametrize(("layers", "rows"), [(1, [0]), (2, [0, 1]), (6, [0, 3, 5])])
def test_maps_have_a_column_for_each_model_and_a_few_layers(layers: int, rows: list[int]) -> None:
    models = {"teacher": maps(layers), "untrained": maps(layers, seed=1), "student": maps(layers, seed=2)}
    images = [axes.images[0] for axes in attention_map_plot(models).axes if axes.images]
    assert len(images) == 3 * len(rows)
    for row, layer in enumerate(rows):
        shown = images[3 * row : 3 * row + 3]
        for image, given in zip(shown, models.values(), strict=True):
            assert torch.equal(torch.from_numpy(image.get_array().data), given[layer].mean(0))
        assert len({image.get_clim() for image in shown}) == 1
        assert shown[0].get_clim() == (0, max(float(given[layer].mean(0).max()) for given in models.values()))


def test_one_head_can_be_shown() -> None:
    given = maps(1)
    image = attention_map_plot({"student": given}, head=1).axes[0].images[0]
    assert torch.equal(torch.from_numpy(image.get_array().data), given[0][1])


def test_tokens_are_named_as_they_are_written() -> None:
    names = ["[CLS]", "$5", "and", "$x_1$", "[SEP]"]
    axes = attention_map_plot({"teacher": maps(3), "student": maps(3)}, names).axes
    assert [label.get_text() for label in axes[0].get_yticklabels()] == names
    assert [label.get_text() for label in axes[4].get_xticklabels()] == names
    assert not axes[0].get_yticklabels()[3].get_parse_math()
    with pytest.raises(ValueError, match="4 tokens for attention maps of 5 queries"):
        attention_map_plot({"student": maps(3)}, names[:4])


def test_tokens_are_of_one_size_and_do_not_overlap() -> None:
    figure = attention_map_plot({"teacher": maps(3, tokens=64), "student": maps(3, tokens=64)}, ["word"] * 64)
    figure.draw_without_rendering()
    for left in figure.axes[0:6:2]:
        boxes = [label.get_window_extent() for label in left.get_yticklabels()]
        # a line of text is a little higher than its letters
        assert all(lower.y1 - lower.y0 < 1.3 * abs(upper.y0 - lower.y0) for upper, lower in pairwise(boxes))
    assert len({label.get_fontsize() for left in figure.axes[0:6:2] for label in left.get_yticklabels()}) == 1


def test_of_many_tokens_only_some_are_named() -> None:
    axes = attention_map_plot({"student": maps(1, tokens=100)}, [str(index) for index in range(100)]).axes
    labels = [label.get_text() for label in axes[0].get_yticklabels()]
    assert 10 < len(labels) < 60
    assert labels[:2] == ["0", str(100 // len(labels) if 100 % len(labels) == 0 else 100 // len(labels) + 1)]


def test_models_of_different_depth_are_named_by_place() -> None:
    axes = attention_map_plot({"teacher": maps(12), "student": maps(4)}).axes
    assert [axes[row].get_ylabel() for row in (0, 2, 4)] == ["first layer", "middle layer", "last layer"]


def test_figures_belong_to_no_global_state(tmp_path: Path) -> None:
    code = (
        "import sys; import qat_lightning, qat_lightning.analysis\n"
        "assert 'matplotlib' not in sys.modules, 'imported with the package'\n"
        "from qat_lightning.reports.plots import layer_error_plot\n"
        f"layer_error_plot({{'student': [1.0, 2.0]}}).savefig({str(tmp_path / 'figure.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    assert (tmp_path / "figure.png").stat().st_size > 5000
