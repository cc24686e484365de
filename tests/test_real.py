"""Whole runs on real data; minutes. Text needs the folder named by QAT_SHARED, or ../shared beside the checkout."""

import os
from pathlib import Path

import pytest

from qat_lightning.config import check, resolve
from qat_lightning.run import run
from tests.training.runs import CONF, compose, initialize_config_dir

SHARED = Path(os.environ.get("QAT_SHARED", Path(__file__).parents[2] / "shared"))
MODEL = SHARED / "models" / "all-MiniLM-L6-v2"
needs_shared = pytest.mark.skipif(not MODEL.is_dir(), reason=f"no {MODEL}")
SMALL = (
    "+experiment=ti_minilm_l6", f"model.path={MODEL}", "data.train_limit=256", "data.validation_limit=128",
    "stages.teacher.max_epochs=1", "stages.intervene.max_steps=6", "stages.intervene.validate_every=3",
    "stages.train.max_epochs=1", "trainer.enable_progress_bar=false", "threads=2",
)  # fmt: skip


def whole_run(folder: Path, *overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = resolve(compose("config", overrides=list(overrides)))
    check(config)
    return run(config, folder, list(overrides))


@pytest.mark.slow
def test_quickstart_is_an_honest_demonstration(tmp_path):
    results = whole_run(tmp_path, "+experiment=quickstart", "trainer.enable_progress_bar=false")
    assert results["teacher"] >= 0.95
    assert results["untrained"] <= results["teacher"] - 0.05
    assert results["student"] >= results["teacher"] - 0.02
    assert results["bytes"]["ratio"] > 10


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize(("task", "metric"), [("sst2", "accuracy"), ("rte", "accuracy"), ("cola", "matthews")])
def test_glue_task_from_local_files(tmp_path, task, metric):
    results = whole_run(tmp_path, *SMALL, f"data={task}", f"data.path={SHARED / 'data' / 'glue' / task}")
    assert (results["task"], results["metric"]) == (task, metric)
    assert results["bits"]["embeddings.word"] == 2
    assert results["bytes"]["ratio"] == pytest.approx(13.6, abs=0.1)


@pytest.mark.slow
@needs_shared
def test_regression_on_a_set_with_columns_of_its_own(tmp_path):
    columns = ("data=text_regression", f"data.path={SHARED / 'data' / 'sick'}", "data.label_column=relatedness_score")
    names = ["sentence1", "sentence2"]
    results = whole_run(tmp_path, *SMALL, *columns, f"data.text_columns=[{','.join(names)}]")
    assert results["metric"] == "pearson"
    assert -1 <= results["student"] <= 1


@pytest.mark.slow
@needs_shared
def test_classes_by_number_on_any_set(tmp_path):
    columns = ("data=text", f"data.path={SHARED / 'data' / 'trec'}", "data.validation_split=test", "data.num_labels=6")
    results = whole_run(tmp_path, *SMALL, *columns, "data.text_columns=[text]", "data.label_column=label")
    assert results["metric"] == "accuracy"
    assert results["status"] == "finished"
