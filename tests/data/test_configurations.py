"""conf/data: columns, lengths and official metrics of every task; each is made and reads rows."""

import pytest
import torch

from qat_lightning.config.instantiate import create
from qat_lightning.config.schema import CONF
from qat_lightning.data.base import TaskData
from tests.training.runs import resolved

ONE, PAIR = ["sentence"], ["sentence1", "sentence2"]
# task: columns as in nyu-mll/glue, num_labels, max_length, batch_size, metrics with the primary one first
GLUE = {
    "cola": (ONE, 2, 64, 16, ["matthews"]),
    "sst2": (ONE, 2, 64, 32, ["accuracy"]),
    "mrpc": (PAIR, 2, 128, 32, ["accuracy", "f1"]),
    "stsb": (PAIR, 1, 128, 32, ["pearson", "spearman"]),
    "qqp": (["question1", "question2"], 2, 128, 32, ["accuracy", "f1"]),
    "mnli": (["premise", "hypothesis"], 3, 128, 32, ["accuracy"]),
    "qnli": (["question", "sentence"], 2, 128, 32, ["accuracy"]),
    "rte": (PAIR, 2, 128, 32, ["accuracy"]),
    "wnli": (PAIR, 2, 128, 32, ["accuracy"]),
}
# tp 2, fp 1, tn 1, fn 0: accuracy 3/4; F1 2·2/(2·2+1+0); Matthews (2·1−1·0)/√(3·2·2·1)
CLASSES = {"accuracy": 0.75, "f1": 0.8, "matthews": 2 / 12**0.5}
# deviations (−3 −2 −1 6) and (−1.5 −.5 .5 1.5): Pearson 14/√(50·5); the ranks agree
SCORES = {"pearson": 14 / 250**0.5, "spearman": 1.0}


def composed(*overrides):
    return resolved(*overrides).data


def value(metric, predictions, labels):
    metric.update(torch.tensor(predictions), torch.tensor(labels))
    return float(metric.compute())


@pytest.mark.parametrize("task", GLUE)
def test_glue_task_is_as_published(task):
    config = composed(f"data={task}")
    columns, num_labels, max_length, batch_size, metrics = GLUE[task]
    assert config["path"] == "nyu-mll/glue"
    assert config["name"] == task
    assert config["text_columns"] == columns
    assert config["label_column"] == "label"
    assert (config["num_labels"], config["max_length"], config["batch_size"]) == (num_labels, max_length, batch_size)
    assert config["metric"] == metrics[0]
    assert set(config["metrics"]) == set(metrics)
    assert config["validation_split"] == ("validation_matched" if task == "mnli" else "validation")


@pytest.mark.parametrize("task", GLUE)
def test_metrics_have_hand_computed_values(task):
    data = create(composed(f"data={task}"), "data")
    for name, metric in data.metrics.items():
        if task == "stsb":
            assert value(metric, [1.0, 2.0, 3.0, 10.0], [1.0, 2.0, 3.0, 4.0]) == pytest.approx(SCORES[name], abs=1e-5)
        else:
            assert value(metric, [1, 1, 1, 0], [1, 1, 0, 0]) == pytest.approx(CLASSES[name], abs=1e-5)


@pytest.mark.parametrize("task", ["stsb", "mnli"])
def test_glue_task_reads_a_local_folder(task, tokenizer, tmp_path):
    columns, num_labels, *_ = GLUE[task]
    for split in ("train", "validation"):
        rows = "\n".join(",".join(["the cat"] * len(columns) + [str(row % num_labels)]) for row in range(4))
        (tmp_path / f"{split}.csv").write_text(",".join([*columns, "label"]) + f"\n{rows}\n")
    places = (
        f"data.path={tmp_path}",
        f"model.path={tokenizer}",
        "data.max_length=16",
        "data.validation_split=validation",
    )
    data = create(composed(f"data={task}", *places), "data")
    assert isinstance(data, TaskData)
    batch = data.example_batch(4)
    assert batch["labels"].dtype == (torch.float32 if task == "stsb" else torch.int64)
    assert batch["input_ids"].shape == (4, 4 if len(columns) == 1 else 7)
    assert data.task == task


MISSING = ("data.path=x", "data.text_columns=[x]", "data.num_labels=3")
NAMES = {
    "batch_size",
    "evaluation_batch_size",
    "num_workers",
    "metric",
    "train_limit",
    "validation_limit",
}


GIVEN = dict.fromkeys(("glue", "text", "text_regression", "multi_label"), MISSING)
GIVEN |= {"reranking": ("data.path=x",)}
GIVEN |= {"token_classification": ("data.path=x", "data.num_labels=3")}
GIVEN |= {"language": ("data.path=x",), "sentences": ("data.path=x",), "images": ("data.path=x", "data.num_labels=3")}


@pytest.mark.parametrize("choice", sorted(path.stem for path in (CONF / "data").glob("[a-z]*.yaml")))
def test_every_data_file_names_the_keys_that_users_override(choice):
    config = composed(f"data={choice}", "seed=7", *GIVEN.get(choice, ()))
    assert set(config) >= NAMES
    assert config["seed"] == 7
    if "path" in config:
        assert set(config) >= {"name", "train_split", "validation_split"}
    if "tokenizer" in config:
        assert set(config) >= {"max_length", "padding"}
    if "label_column" in config:
        assert "num_labels" in config
