import io
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console, RenderableType

from qat_lightning.analysis.attention_maps import column_mass
from qat_lightning.analysis.attention_ranking import ranking_loss
from qat_lightning.analysis.loss_landscape import Landscape
from qat_lightning.analysis.result_files import write_landscapes, write_spectra
from qat_lightning.models.capture import SignalCapture, Signals
from qat_lightning.models.convert import open_attention
from qat_lightning.reports.report import StageHistory, draw_sections, read_history, summary_table, write_report
from tests.tiny_models import LENGTHS, tiny_batch, tiny_model

RESULTS: dict[str, Any] = {
    "experiment": "ti_bert_base",
    "task": "cola",
    "metric": "matthews",
    "higher_is_better": True,
    "teacher": 0.5810,
    "untrained": 0.0123,
    "student": 0.5575,
    "seed": 42,
    "steps": {"teacher": 4, "intervene": 2, "train": 3},
    "seconds": {"teacher": 8.0, "intervene": 6.5, "train": 3723.0},
    "bytes": {"float32": 437_931_008, "packed": 29_430_912, "ratio": 14.88, "checkpoint": 3 * 437_931_008},
    "bits": {"embeddings.word": 2, "attention.query": 2, "head": 32},
    "assisted": 0.5799,
    "student_hash": "ab12" * 16,
    "status": "finished",
    "versions": {"torch": "2.13.0"},
}
PICTURES = {"training", "layer_errors", "attention_maps", "attention_measures", "dynamic_range"}
SITES = ["hidden", "attention.probs", "attention.output"]


@pytest.fixture(scope="module")
def signals() -> dict[str, Signals]:
    return {name: run("bert", seed) for seed, name in enumerate(("teacher", "untrained", "student"))}


@torch.no_grad()
def run(family: str, seed: int, **changes: object) -> Signals:
    model = open_attention(tiny_model(family, seed, **changes))
    return SignalCapture(model, SITES)(tiny_batch(family))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with logs: three stages, the last one resumed."""
    logs = {
        "teacher": "step,train/loss,val/matthews\n0,2,\n1,1.5,\n2,1.2,\n3,1,0.58\n",
        "intervene": "step,train/loss,val/matthews,val_assisted/matthews\n0,9,,\n1,8,0.3,0.57\n",
        "train": "step,train/loss,val/matthews\n0,7,\n1,6,0.4\n2,99,\n",
        "train.1": "step,train/loss,val/matthews\n2,5,0.5575\n",
    }
    for name, text in logs.items():
        (tmp_path / "logs" / name).mkdir(parents=True)
        (tmp_path / "logs" / name / "metrics.csv").write_text(text)
    (tmp_path / "overrides.yaml").write_text("- +experiment=ti_bert_base\n- data.path='a b'\n")
    return tmp_path


def write(
    folder: Path,
    signals: dict[str, Signals],
    tokens: list[str] | None = None,
    without: tuple[str, ...] = (),
    **changes: object,
) -> str:
    results = {name: value for name, value in (RESULTS | changes).items() if name not in without}
    path = write_report(folder, results, draw_sections(folder, results, signals, tiny_batch("bert"), tokens))
    assert path == folder / "report.md"
    return path.read_text(encoding="utf-8")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links to pictures, and no pictures: for tests of the text."""
    for module in ("qat_lightning.reports.sections", "qat_lightning.reports.report"):
        monkeypatch.setattr(f"{module}.picture", lambda folder, figure, name, says: f"![{says}](plots/{name}.png)")


def pictures(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "plots").glob("*.png")}


@pytest.mark.usefixtures("undrawn")
def test_the_report_says_what_came_out(folder: Path, signals: dict[str, Signals]) -> None:
    text = write(folder, signals)
    assert text.startswith("# `ti_bert_base` on cola\n\n**The ternary student keeps 96.0 % of the teacher's matthews")
    assert "| teacher | 0.5810 | 417.6 MiB | 1× |" in text
    assert "| quantized, not trained | 0.0123 | 28.07 MiB | 14.88× |" in text
    assert "| **student** | **0.5575** | **28.07 MiB** | **14.88×** |" in text
    assert "took 1.224 GiB" in text
    assert "| 2 | `embeddings.word`, `attention.query` |\n| 32 | `head` |" in text
    assert "| teacher | 4 | 8.0 s | 2000 ms |" in text
    assert "| train | 3 | 1 h 2 min | 1241000 ms |" in text
    assert f"`{RESULTS['student_hash']}`" in text
    assert "python -m qat_lightning +experiment=ti_bert_base 'data.path='\"'\"'a b'\"'\"''" in text
    assert "torch 2.13.0" in text


def test_the_pictures_are_drawn_and_linked(folder: Path, signals: dict[str, Signals]) -> None:
    text = write(folder, signals)
    assert pictures(folder) == PICTURES
    for name in PICTURES:
        assert f"](plots/{name}.png)" in text
        pixels = imread(folder / "plots" / f"{name}.png")
        assert min(pixels.shape[:2]) > 300
        assert 600 < pixels.shape[1] < 1400
        assert pixels[..., :3].std() > 0.05  # not a blank page


@pytest.mark.usefixtures("undrawn")
def test_the_errors_of_the_layers_are_told_in_numbers(folder: Path, signals: dict[str, Signals]) -> None:
    text = write(folder, signals | {"student": signals["teacher"]})
    lines = [line for line in text.splitlines() if line.startswith(("| 0 (embeddings)", "| 1 |", "| 2 |"))]
    assert [line.split("|")[-2].strip() for line in lines if "embeddings.word" not in line] == ["0", "0", "0"]
    assert "An error of exactly 0" in text
    assert "An error of exactly 0" not in write(folder, signals)


@pytest.mark.usefixtures("undrawn")
def test_the_assisted_score_is_never_the_result(folder: Path) -> None:
    (line,) = [line for line in write(folder, {}).splitlines() if "0.5799" in line]
    assert "**teacher-assisted, not the student's own**" in line
    without = write(folder, {}, assisted=None, steps={"train": 3})
    assert "assisted" not in without
    assert "0.5799" not in shown(summary_table(RESULTS, None))


@pytest.mark.usefixtures("undrawn")
def test_undefined_scores_are_called_so(folder: Path) -> None:
    scores = dict.fromkeys(("teacher", "untrained", "student", "student_last_step"))
    text = write(folder, {}, **scores)
    assert "**The student's matthews is undefined: it is not a finite number (teacher undefined).**" in text
    assert "| teacher | undefined | 417.6 MiB | 1× |" in text
    assert "| quantized, not trained | undefined |" in text
    assert "| **student** | **undefined** |" in text
    assert "*undefined*: matthews is not a finite number for these predictions." in text
    assert "last step" not in text
    assert "*undefined*" not in write(folder, {})
    table = shown(summary_table(RESULTS | scores, None))
    assert table.count("undefined") == 3
    last = write(folder, {}, student_last_step=None)
    assert "those of the last step had an undefined score" in last
    for words in (text, table, last):
        assert "nan" not in words
        assert "None" not in words


@pytest.mark.usefixtures("undrawn")
def test_the_report_says_that_exports_are_missing(folder: Path) -> None:
    assert "**The export failed.** Repeat it by the same command" in write(folder, {}, status="export failed")
    assert "The export has not ended." in write(folder, {}, status="trained")
    assert "export has" not in write(folder, {})


@pytest.mark.usefixtures("undrawn")
def test_the_report_says_that_the_best_weights_were_kept(folder: Path) -> None:
    assert "those of the last step scored 0.5321" in write(folder, {}, student_last_step=0.5321)
    assert "last step" not in write(folder, {}, student_last_step=RESULTS["student"])
    assert "last step" not in write(folder, {})


def test_a_run_without_a_teacher(folder: Path, signals: dict[str, Signals]) -> None:
    text = write(
        folder,
        {"student": signals["student"]},
        without=("teacher", "untrained"),
        assisted=None,
        steps={"train": 3},
        seconds={},
    )
    assert "a run without a teacher" in text
    assert "| teacher |" not in text
    assert "not trained" not in text
    assert "teacher's level" not in text
    assert text.count("Not measured: there was no teacher to compare with.") == 3  # errors, attention
    assert pictures(folder) == {"training", "attention_maps", "dynamic_range"}


def test_a_run_without_logs_and_signals(tmp_path: Path) -> None:
    text = write(tmp_path, {}, bits={}, versions={}, seconds={})
    assert "No curves" in text
    assert "Not captured: no model gave its `attention.probs`." in text
    assert "Not captured: no model gave its `attention.output`." in text
    assert "## Hessian" not in text
    assert "## Loss landscape" not in text
    assert "```bash" not in text
    assert "## Bits" not in text
    assert pictures(tmp_path) == set()


def test_a_student_of_another_depth_has_no_layer_errors(folder: Path, signals: dict[str, Signals]) -> None:
    text = write(folder, {"teacher": run("bert", 0, num_hidden_layers=4), "student": signals["student"]})
    assert "Not measured: hidden: the student's signals (3 of shape" in text
    assert pictures(folder) == PICTURES - {"layer_errors"}, (
        "attention is compared with every other layer of the teacher"
    )


def test_images_have_no_padding_and_no_tokens(folder: Path) -> None:
    given = {name: run("vit", seed) for seed, name in enumerate(("teacher", "untrained", "student"))}
    draw_sections(folder, RESULTS, given, tiny_batch("vit"))
    assert pictures(folder) == PICTURES


def measures(text: str) -> dict[str, dict[str, float]]:
    """Model → measure → number, from the report's table."""
    head, _, *rows = next(block for block in text.split("\n\n") if block.startswith("| mean over layers")).splitlines()
    names, *cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in (head, *rows))
    return {row[0]: dict(zip(names[1:], map(float, row[1:]), strict=True)) for row in cells}


@pytest.mark.usefixtures("undrawn")
def test_attention_is_measured_against_the_teacher(folder: Path, signals: dict[str, Signals]) -> None:
    found = measures(write(folder, signals))
    assert list(found) == ["teacher", "quantized, not trained", "student"]
    names = ["ranking loss", "cover-length ratio", "map KL", "attention distance", "first token's mass"]
    assert all(list(line) == names for line in found.values())
    assert found["teacher"]["ranking loss"] == found["teacher"]["map KL"] == 0
    ideal = sum((min(length, 5) - 1) / length for length in LENGTHS) / len(LENGTHS)
    assert found["teacher"]["cover-length ratio"] == pytest.approx(ideal, rel=1e-3)
    batch = tiny_batch("bert")
    losses = [
        float(ranking_loss(*pair, batch).mean())
        for pair in zip(signals["student"]["attention.probs"], signals["teacher"]["attention.probs"], strict=True)
    ]
    assert found["student"]["ranking loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-3)


@pytest.mark.usefixtures("undrawn")
def test_separators_are_found_by_the_names_of_the_first_sample(folder: Path, signals: dict[str, Signals]) -> None:
    names = ["[CLS]", "a", "b", "[SEP]", "c", "d", "e", "f", "[SEP]"]
    found = measures(write(folder, signals, names))
    batch = tiny_batch("bert")
    separators = batch["input_ids"][0, [3, 8]]
    columns = torch.isin(batch["input_ids"], separators) & batch["attention_mask"].bool()
    masses = [float(column_mass(layer, columns, batch).mean()) for layer in signals["teacher"]["attention.probs"]]
    assert found["teacher"]["[SEP] mass"] == pytest.approx(sum(masses) / len(masses), rel=1e-3)
    assert "[SEP] mass" not in measures(write(folder, signals, ["w"] * 9))["teacher"]


def test_heads_that_differ_are_not_compared(folder: Path, signals: dict[str, Signals]) -> None:
    text = write(folder, signals | {"student": run("bert", 0, num_attention_heads=2)})
    assert "Not measured: attention maps of shapes (3, 2, 9, 9) and (3, 4, 9, 9) cannot be compared" in text
    assert "attention_measures" not in pictures(folder)


def test_what_callbacks_left_is_shown(folder: Path, signals: dict[str, Signals]) -> None:
    write_spectra(folder, {"teacher": [[3.0, 1.0], [2.0, -0.5]], "student": [[30.0, -7.0]], "other": []}, "As told")
    flat = Landscape([-1.0, 0.0, 1.0], [[2.0, 1.0, 2.0], [1.0, 0.5, 1.0], [2.0, 1.0, 2.0]])
    write_landscapes(folder, {"teacher": flat, "student": flat}, "Also told")
    text = write(folder, signals)
    assert pictures(folder) == PICTURES | {"hessian", "landscape"}
    assert "| teacher | 2 | 3 | 1 of 4 |" in text
    assert "| student | 30 | 30 | 1 of 2 |" in text
    assert "| other | – | – | 0 of 0 |" in text
    assert "last step. As told." in text
    assert "Also told." in text


def test_tokens_come_with_or_without_padding(folder: Path, signals: dict[str, Signals]) -> None:
    batch = {name: value.flip(0) for name, value in tiny_batch("bert").items()}  # the first sample is the shortest
    given = {name: {site: [x.flip(0) for x in all_] for site, all_ in own.items()} for name, own in signals.items()}
    drawn = []
    for tokens in (["[CLS]", "$", "[SEP]"], ["[CLS]", "$", "[SEP]"] + ["[PAD]"] * (max(LENGTHS) - min(LENGTHS))):
        draw_sections(folder, RESULTS, given, batch, tokens)
        drawn.append(imread(folder / "plots" / "attention_maps.png"))
    assert (drawn[0] == drawn[1]).all()
    with pytest.raises(ValueError, match="4 tokens"):
        draw_sections(folder, RESULTS, given, batch, ["a", "b", "c", "d"])


def test_the_history_is_that_of_the_logs(folder: Path) -> None:
    history = read_history(folder, RESULTS["steps"])
    assert [(stage.name, stage.steps, stage.series("train/loss")[1]) for stage in history] == [
        ("teacher", 4, [2, 1.5, 1.2, 1]),
        ("intervene", 2, [9, 8]),
        ("train", 3, [7, 6, 5]),
    ]
    assert isinstance(history[0], StageHistory)


def shown(table: RenderableType, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text()


def test_the_terminal_table_fits_80_columns() -> None:
    text = shown(summary_table(RESULTS, Path("/runs/2026-01-01/report.md")))
    rows = {line.split("  ")[0].strip(): line.split() for line in text.splitlines() if "  " in line.strip()}
    assert rows["model"][1:3] == ["matthews", "↑"]
    assert rows["quantized, not trained"][-4:] == ["0.0123", "28.07", "MiB", "14.88×"]
    assert rows["student"] == ["student", "0.5575", "28.07", "MiB", "14.88×"]
    assert rows["train"] == ["train", "3", "1", "h", "2", "min", "1241000", "ms"]
    assert "report: /runs/2026-01-01/report.md" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_terminal_table_without_a_teacher() -> None:
    results = {name: value for name, value in RESULTS.items() if name not in ("teacher", "untrained")}
    text = shown(summary_table(results | {"higher_is_better": False, "steps": {}}, None))
    assert "matthews ↓" in text
    assert "not trained" not in text
    assert "report:" not in text


GRID = '{"steps": [-1.0, 0.0, 1.0], "losses": [[1, 2, 3], [1, null, 3], [1, 2, 3]]}'


@pytest.mark.parametrize("name", ["hessian", "landscape"])
@pytest.mark.parametrize(
    "content",
    [
        "", "\0" * 100, "{", "[]", "{}", "[" * 100_000, '{"about": "x"}', '{"eigenvalues": {"student": 7}, "about": "x"}',
        '{"eigenvalues": {"student": [["x"]]}, "about": "x"}', '{"landscapes": {"student": {}}, "about": "x"}',
        '{"landscapes": {"student": {"steps": [0, 1], "losses": [[1]]}}, "about": "x"}',
        '{"landscapes": {"student": {"steps": [], "losses": []}}, "about": "x"}',
        '{"landscapes": {"a": GRID, "b": GRID, "c": GRID, "d": GRID}, "about": "x"}'.replace("GRID", GRID),
    ],
    ids=range(13),
)  # fmt: skip
def test_damaged_records_of_callbacks_end_no_run(tmp_path: Path, undrawn: None, name: str, content: str) -> None:
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / f"{name}.json").write_text(content)
    assert "Not shown: " in write(tmp_path, {})


def test_a_loss_that_is_not_finite_is_shown(tmp_path: Path) -> None:
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "landscape.json").write_text(f'{{"landscapes": {{"student": {GRID}}}, "about": "x"}}')
    assert "plots/landscape.png" in write(tmp_path, {})


def test_pictures_do_not_follow_a_users_matplotlibrc(folder: Path) -> None:
    drawn = []
    for wanted in ({"text.usetex": True, "savefig.format": "pdf", "savefig.transparent": True, "font.size": 40}, {}):
        with matplotlib.rc_context(wanted):
            write(folder, {})
            assert matplotlib.rcParams["font.size"] == wanted.get("font.size", 10)
        drawn.append((folder / "plots" / "training.png").read_bytes())
    assert drawn[0].startswith(b"\x89PNG")
    assert drawn[0] == drawn[1]
