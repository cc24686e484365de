from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from qat_lightning.analysis.training_log import StageHistory, read_history


def write(folder: Path, version: str, text: str) -> None:
    file = folder / "logs" / version / "metrics.csv"
    file.parent.mkdir(parents=True)
    file.write_text(text)


def test_reads_what_lightning_writes(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="logs", version="train")
    logger.log_metrics({"train/loss": 2.5, "epoch": 0}, step=0)
    logger.log_metrics({"val/accuracy": 0.75, "epoch": 0}, step=0)
    logger.log_metrics({"train/loss": 1.5, "epoch": 0}, step=1)
    logger.save()
    (stage,) = read_history(tmp_path, {"train": 2})
    assert stage == StageHistory(
        "train",
        2,
        [{"step": 0, "epoch": 0, "train/loss": 2.5, "val/accuracy": 0.75}, {"step": 1, "epoch": 0, "train/loss": 1.5}],
    )


def test_later_files_win_where_they_logged(tmp_path: Path) -> None:
    write(tmp_path, "train", "step,train/loss,val/f1\n0,9,\n1,8,0.1\n2,7,0.2\n")
    write(tmp_path, "train.2", "step,train/loss,val/f1\n2,70,\n3,60,\n")
    write(tmp_path, "train.10", "step,train/loss,val/f1\n3,600,0.5\n")
    (stage,) = read_history(tmp_path, {"train": 4})
    assert stage.series("train/loss") == ([0, 1, 2, 3], [9, 8, 70, 600])
    assert stage.series("val/f1") == ([1, 2, 3], [0.1, 0.2, 0.5])


def test_each_stage_has_its_own_files(tmp_path: Path) -> None:
    write(tmp_path, "train", "step,train/loss\n0,1\n")
    write(tmp_path, "train_more", "step,train/loss\n0,2\n")
    write(tmp_path, "train.old", "step,train/loss\n0,3\n")
    write(tmp_path, "teacher", "step,train/loss\n0,4\n")
    history = read_history(tmp_path, {"teacher": 5, "intervene": 0, "train": 6})
    assert [(stage.name, stage.steps, stage.series("train/loss")[1]) for stage in history] == [
        ("teacher", 5, [4]),
        ("intervene", 0, []),
        ("train", 6, [1]),
    ]


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    write(tmp_path, "train", "epoch,step,train/loss\n0,0,3.5\n0,1,2.5e\n0,\n0,2,1.5,7\n")
    (stage,) = read_history(tmp_path, {"train": 3})
    assert stage.series("train/loss") == ([0, 2], [3.5, 1.5])
    assert stage.rows[1] == {"epoch": 0, "step": 1}


@pytest.mark.parametrize(
    ("damaged", "left"),
    [
        ("\0" * 400_000, []),
        ("step,train/loss\n0,1\n1,2\n" + "\0" * 400_000, [1, 2]),
        ("step,train/loss\n0,1\n\0\0\0\n2,3\n", [1, 3]),
        ('step,train/loss\n0,1\n"' + "x" * 400_000, [1]),
        ("step,train/loss\n0,1\nnan,5\ninf,6\n", [1]),
        ("step,train/loss\n0,1\n1e308,5\n1,1e308\n2,-1e308\n", [1]),
    ],
    ids=[
        "zeros",
        "zeros at the end",
        "zeros within",
        "an endless cell",
        "steps that are not finite",
        "too large to draw",
    ],
)
@pytest.mark.filterwarnings("ignore:.*metrics.csv is damaged")
def test_a_damaged_log_gives_what_is_left(tmp_path: Path, damaged: str, left: list[float]) -> None:
    write(tmp_path, "train", damaged)
    write(tmp_path, "train.1", "step,train/loss\n7,8\n")
    (stage,) = read_history(tmp_path, {"train": 8})
    assert stage.series("train/loss")[1] == [*left, 8]


def test_endless_log_is_left_out_with_a_warning(tmp_path: Path) -> None:
    write(tmp_path, "train", "step,train/loss\n0,1\n")
    with (tmp_path / "logs" / "train" / "metrics.csv").open("r+b") as file:
        file.truncate(2**34)
    with pytest.warns(UserWarning, match=r"metrics\.csv has 17179869184 bytes, more than .* no curves"):
        (stage,) = read_history(tmp_path, {"train": 1})
    assert stage.rows == []
