import io
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console, RenderableType

from qat_lightning.analysis.attention_maps import column_mass
from qat_lightning.analysis.attention_ranking import ranking_loss
from qat_lightning.analysis.loss_landscape import Landscape
from qat_lightning.analysis.result_files import write_landscapes, write_spectra
from qat_lightning.models.capture import SignalCapture, Signals
from qat_lightning.models.convert import open_attention
from qat_lightning.reports.report import draw_sections, summary_table, write_report
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
    "quantizers": [{"tensor": "weights", "levels": 3}],
    "assisted": 0.5799,
    "student_hash": "ab12" * 16,
    "status": "finished",
    "versions": {"torch": "2.13.0"},
}
PLOTS = {"training", "layer_errors", "attention_maps", "attention_measures", "dynamic_range"}
SITES = ["hidden", "attention.probs", "attention.output"]
LOGS = {
    "teacher": "step,train/loss,val/matthews\n0,2,\n1,1.5,\n2,1.2,\n3,1,0.58\n",
    "intervene": "step,train/loss,val/matthews,val_assisted/matthews\n0,9,,\n1,8,0.3,0.57\n",
    "train": "step,train/loss,val/matthews\n0,7,\n1,6,0.4\n2,99,\n",
    "train.1": "step,train/loss,val/matthews\n2,5,0.5575\n",
}


@torch.no_grad()
def run(family: str, seed: int, **changes: object) -> Signals:
    model = open_attention(tiny_model(family, seed, **changes))
    return SignalCapture(model, SITES)(tiny_batch(family))


@pytest.fixture(scope="module")
def signals() -> dict[str, Signals]:
    return {name: run("bert", seed) for seed, name in enumerate(("teacher", "untrained", "student"))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a run folder with the logs of three stages; the last one was resumed."""
    for name, text in LOGS.items():
        (tmp_path / "logs" / name).mkdir(parents=True)
        (tmp_path / "logs" / name / "metrics.csv").write_text(text)
    (tmp_path / "overrides.yaml").write_text("- +experiment=ti_bert_base\n- data.path='a b'\n")
    return tmp_path


draw = Figure.savefig


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the pictures, which tests/conftest.py leaves empty."""
    monkeypatch.setattr(Figure, "savefig", draw)


def write(
    folder: Path, signals: dict[str, Signals], tokens: Any = None, without: tuple[str, ...] = (), **changes: object
) -> str:
    results = {name: value for name, value in (RESULTS | changes).items() if name not in without}
    path = write_report(folder, results, draw_sections(folder, results, signals, tiny_batch("bert"), tokens))
    assert path == folder / "report.md"
    return path.read_text(encoding="utf-8")


def plots(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "plots").glob("*.png")}


@pytest.mark.usefixtures("drawn")
def test_report_shows_results_and_plots(folder: Path, signals: dict[str, Signals]) -> None:
    text = write(folder, signals)
    assert text.startswith("# `ti_bert_base` on cola\n\n**The ternary student keeps 96.0 % of the teacher's matthews")
    for line in (
        "| teacher | 0.5810 | 417.6 MiB | 1× |",
        "| PTQ baseline | 0.0123 | 28.07 MiB | 14.88× |",
        "| **student** | **0.5575** | **28.07 MiB** | **14.88×** |",
        "| 2 | `embeddings.word`, `attention.query` |\n| 32 | `head` |",
        "| teacher | 4 | 8.0 s | 2000 ms |",
        "| train | 3 | 1 h 2 min | 1241000 ms |",
        f"`{RESULTS['student_hash']}`",
        "python -m qat_lightning +experiment=ti_bert_base 'data.path='\"'\"'a b'\"'\"''",
        "Versions: torch 2.13.0",
    ):
        assert line in text
    assert "took 1.224 GiB" in text
    assert plots(folder) == PLOTS
    for name in PLOTS:
        assert f"](plots/{name}.png)" in text
        pixels = imread(folder / "plots" / f"{name}.png")
        assert min(pixels.shape[:2]) > 300
        assert pixels[..., :3].std() > 0.05  # not a blank page


def test_layer_errors_are_listed(folder: Path, signals: dict[str, Signals]) -> None:
    text = write(folder, signals | {"student": signals["teacher"]})
    lines = [line for line in text.splitlines() if line.startswith(("| 0 (embeddings)", "| 1 |", "| 2 |"))]
    assert [line.split("|")[-2].strip() for line in lines if "embeddings.word" not in line] == ["0", "0", "0"]
    assert "An error of exactly 0" in text


def test_assisted_score_is_never_the_result(folder: Path) -> None:
    (line,) = [line for line in write(folder, {}).splitlines() if "0.5799" in line]
    assert "**teacher-assisted, not the student's own**" in line
    assert "assisted" not in write(folder, {}, assisted=None, steps={"train": 3})
    assert "0.5799" not in shown(summary_table(RESULTS, None))


def test_undefined_scores_are_named(folder: Path) -> None:
    scores = dict.fromkeys(("teacher", "untrained", "student", "student_last_step"))
    text, table = write(folder, {}, **scores), shown(summary_table(RESULTS | scores, None))
    assert "| teacher | undefined | 417.6 MiB | 1× |" in text
    assert "*undefined*: matthews is not a finite number" in text
    assert "*undefined*" not in write(folder, {})
    assert table.count("undefined") == 3
    last = write(folder, {}, student_last_step=None)
    assert "the last step had an undefined score" in last
    assert not [words for words in (text, table, last) if "nan" in words or "None" in words]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"status": "export failed"}, "**The export failed.**"),
        ({"status": "trained"}, "The exports are not finished."),
        ({"student_last_step": 0.5321}, "the last step scored 0.5321"),
    ],
)
def test_state_of_the_run(folder: Path, changes: dict[str, Any], sentence: str) -> None:
    assert sentence in write(folder, {}, **changes)
    assert sentence not in write(folder, {}, student_last_step=RESULTS["student"])


def test_run_without_a_teacher(folder: Path, signals: dict[str, Signals]) -> None:
    given = {"assisted": None, "steps": {"train": 3}, "seconds": {}}
    text = write(folder, {"student": signals["student"]}, without=("teacher", "untrained"), **given)
    assert "a run without a teacher" in text
    assert "| teacher |" not in text
    assert "PTQ baseline" not in text
    assert "teacher's level" not in text
    assert text.count("Not shown: there was no teacher to compare with.") == 2  # errors, attention
    assert plots(folder) == {"training", "attention_maps", "dynamic_range"}


def test_run_without_logs_and_signals(tmp_path: Path) -> None:
    text = write(tmp_path, {}, bits={}, versions={}, seconds={})
    assert "No curves" in text
    assert text.count("Not shown: no model has the signal") == 5
    assert not [title for title in ("## Hessian", "## Loss landscape", "```bash", "## Bits") if title in text]
    assert plots(tmp_path) == set()


def test_student_of_another_shape_is_not_compared(folder: Path, signals: dict[str, Signals]) -> None:
    text = write(folder, {"teacher": run("bert", 0, num_hidden_layers=4), "student": signals["student"]})
    assert "Not shown: hidden: the student has 3 of shape" in text
    assert plots(folder) == PLOTS - {"layer_errors"}  # attention is compared with every other layer of the teacher
    (folder / "plots" / "attention_measures.png").unlink()
    text = write(folder, signals | {"student": run("bert", 0, num_attention_heads=2)})
    assert "Not shown: attention maps of shapes (3, 2, 9, 9) and (3, 4, 9, 9)" in text
    assert "attention_measures" not in plots(folder)


def test_images_have_no_padding_and_no_tokens(folder: Path) -> None:
    given = {name: run("vit", seed) for seed, name in enumerate(("teacher", "untrained", "student"))}
    draw_sections(folder, RESULTS, given, tiny_batch("vit"))
    assert plots(folder) == PLOTS


def measures(text: str) -> dict[str, dict[str, float]]:
    """Return model → measure → number, from the report's table."""
    head, _, *rows = next(block for block in text.split("\n\n") if block.startswith("| mean over layers")).splitlines()
    names, *cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in (head, *rows))
    return {row[0]: dict(zip(names[1:], map(float, row[1:]), strict=True)) for row in cells}


def test_attention_is_measured_against_the_teacher(folder: Path, signals: dict[str, Signals]) -> None:
    names = ["[CLS]", "a", "b", "[SEP]", "c", "d", "e", "f", "[SEP]"]
    found, batch = measures(write(folder, signals, names).replace("\\", "")), tiny_batch("bert")
    assert list(found) == ["teacher", "PTQ baseline", "student"]
    assert found["teacher"]["ranking loss"] == found["teacher"]["map KL"] == 0
    ideal = sum((min(length, 5) - 1) / length for length in LENGTHS) / len(LENGTHS)
    assert found["teacher"]["cover-length ratio"] == pytest.approx(ideal, rel=1e-3)
    maps = zip(signals["student"]["attention.probs"], signals["teacher"]["attention.probs"], strict=True)
    losses = [float(ranking_loss(*pair, batch).mean()) for pair in maps]
    assert found["student"]["ranking loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-3)
    separators = batch["input_ids"][0, [3, 8]]
    columns = torch.isin(batch["input_ids"], separators) & batch["attention_mask"].bool()
    masses = [float(column_mass(layer, columns, batch).mean()) for layer in signals["teacher"]["attention.probs"]]
    assert found["teacher"]["[SEP] mass"] == pytest.approx(sum(masses) / len(masses), rel=1e-3)
    assert "SEP" not in write(folder, signals, ["w"] * 9).partition("| mean over layers")[2].splitlines()[0]


@pytest.mark.usefixtures("drawn")
def test_results_of_callbacks_are_shown(folder: Path) -> None:
    write_spectra(folder, {"teacher": [[3.0, 1.0], [2.0, -0.5]], "student": [[30.0, -7.0]], "other": []}, "Settings")
    grid = Landscape([-1.0, 0.0, 1.0], [[2.0, 1.0, 2.0], [1.0, float("nan"), 1.0], [2.0, 1.0, 2.0]])
    write_landscapes(folder, {"teacher": grid, "student": grid}, "Grid")
    text = write(folder, {})
    assert plots(folder) == {"training", "hessian", "landscape"}
    assert "| teacher | 2 | 3 | 1 of 4 |\n| student | 30 | 30 | 1 of 2 |\n| other | – | – | 0 of 0 |" in text
    assert "last step. Settings." in text
    assert "Grid." in text


@pytest.mark.usefixtures("drawn")
def test_tokens_may_include_padding(folder: Path, signals: dict[str, Signals]) -> None:
    batch = {name: value.flip(0) for name, value in tiny_batch("bert").items()}  # the first sample is the shortest
    given = {"teacher": {"attention.probs": [layer.flip(0) for layer in signals["teacher"]["attention.probs"]]}}
    drawn = []
    for tokens in (["[CLS]", "$", "[SEP]"], ["[CLS]", "$", "[SEP]"] + ["[PAD]"] * (max(LENGTHS) - min(LENGTHS))):
        draw_sections(folder, RESULTS, given, batch, tokens)
        drawn.append((folder / "plots" / "attention_maps.png").read_bytes())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        # 25 of 125 tokens are 20 %; with 85 and 300 tokens of padding they would be 45.9 % and 75 %
        (
            [(50, 5, 35, 150), (50, 20, 50, 150)],
            "25 of the 125 tokens in the training batches (20.0 %). Saved: 60 against batches of mixed rows, each padded to its"
            " longest (45.9 %); 275 against all rows padded to `data.max_length` (75.0 %).",
        ),
        ([(9, 3, 1, 3)], "batches (25.0 %). `data.padding=longest` would have needed 1 (10.0 %)."),
        ([(9, 1, 1, 1)], "batches (10.0 %)."),
        ([], None),
    ],
)
def test_padding_is_reported(tmp_path: Path, stages: list[tuple[int, ...]], words: str | None) -> None:
    names = ("tokens", "padding", "longest", "max_length")
    padding = {str(index): dict(zip(names, stage, strict=True)) for index, stage in enumerate(stages)}
    text = write_report(tmp_path, RESULTS | {"padding": padding}, {}).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("Padding: ")]
    assert len(lines) == bool(words)
    assert not words or lines[0].endswith(words)


def shown(table: RenderableType, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text()


def test_terminal_table_fits_80_columns() -> None:
    text = shown(summary_table(RESULTS, Path("/runs/2026-01-01/report.md")))
    rows = {line.split("  ")[0].strip(): line.split() for line in text.splitlines() if "  " in line.strip()}
    assert rows["model"][1:3] == ["matthews", "↑"]
    assert rows["PTQ baseline"][-4:] == ["0.0123", "28.07", "MiB", "14.88×"]
    assert rows["train"] == ["train", "3", "1", "h", "2", "min", "1241000", "ms"]
    assert "report: /runs/2026-01-01/report.md" in text
    assert max(map(len, text.splitlines())) <= 80
    results = {name: value for name, value in RESULTS.items() if name not in ("teacher", "untrained")}
    text = shown(summary_table(results | {"higher_is_better": False, "steps": {}}, None))
    assert "matthews ↓" in text
    assert "PTQ baseline" not in text


GRID = '{"steps": [-1.0, 0.0, 1.0], "losses": [[1, 2, 3], [1, null, 3], [1, 2, 3]]}'
DAMAGED = [
    "", "\0" * 100, "{", "[]", "[" * 100_000, '{"about": "x"}', '{"eigenvalues": {"student": 7}, "about": "x"}',
    '{"landscapes": {"student": {"steps": [0, 1], "losses": [[1]]}}, "about": "x"}',
    '{"landscapes": {"student": {"steps": [], "losses": []}}, "about": "x"}',
    '{"landscapes": {"a": GRID, "b": GRID, "c": GRID, "d": GRID}, "about": "x"}'.replace("GRID", GRID),
]  # fmt: skip


def test_damaged_files_of_callbacks_do_not_end_a_run(tmp_path: Path) -> None:
    (tmp_path / "analysis").mkdir()
    for content in DAMAGED:
        for name in ("hessian", "landscape"):
            (tmp_path / "analysis" / f"{name}.json").write_text(content)
        assert write(tmp_path, {}).count("Not shown: ") == 7


@pytest.mark.usefixtures("drawn")
def test_plots_do_not_depend_on_matplotlibrc(folder: Path) -> None:
    drawn = []
    for wanted in ({"text.usetex": True, "savefig.format": "pdf", "savefig.transparent": True, "font.size": 40}, {}):
        with matplotlib.rc_context(wanted):
            write(folder, {})
            assert matplotlib.rcParams["font.size"] == wanted.get("font.size", 10)
        drawn.append((folder / "plots" / "training.png").read_bytes())
    assert drawn[0].startswith(b"\x89PNG")
    assert drawn[0] == drawn[1]
