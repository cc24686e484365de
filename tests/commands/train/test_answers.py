"""Agreement, calibration, figures of classes and confusion matrix of a run."""

import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score
from torchmetrics.classification import MulticlassAccuracy

from qat_lightning.commands.train.answers import describe_answers
from qat_lightning.data.synthetic import RandomText
from tests.training.runs import small_run


def test_figures_of_classes_are_those_of_sklearn():
    data = RandomText(batch_size=4, metrics={"a": MulticlassAccuracy(3)}, metric="a", num_labels=3)
    torch.manual_seed(0)
    labels, logits = torch.randint(3, (40,)), {name: torch.randn(40, 3) for name in ("teacher", "student")}
    described = describe_answers(data, {name: (own, labels) for name, own in logits.items()} | {"untrained": None})
    own, answers = described["models"]["student"], logits["student"].argmax(1)
    assert own["confusion"] == confusion_matrix(labels, answers).tolist()
    assert own["f1"] == pytest.approx(f1_score(labels, answers, average=None))
    assert own["agreement"] == pytest.approx(float((answers == logits["teacher"].argmax(1)).float().mean()))
    assert sum(described["rows"]) == 40
    broken = describe_answers(data, {"teacher": (logits["teacher"] * torch.nan, labels)})
    assert broken["models"]["teacher"]["calibration_error"] is None


def test_a_run_reports_its_answers(tmp_path):
    results = small_run(tmp_path, "stages.intervene.max_steps=0")
    models = results["answers"]["models"]
    for name in ("teacher", "untrained", "student"):
        right = sum(row[number] for number, row in enumerate(models[name]["confusion"]))
        assert right / results["validation"]["rows"] == pytest.approx(results[name])
    assert models["teacher"]["agreement"] == 1
    report = (tmp_path / "report.md").read_text()
    assert "## Answers" in report
    assert (tmp_path / "plots" / "confusion.png").is_file()


def test_a_regression_has_no_classes(tmp_path):
    metric = ("~data.metrics.accuracy", "+data.metrics.mse._target_=torchmetrics.MeanSquaredError", "data.metric=mse")
    results = small_run(tmp_path, "data.num_labels=1", *metric, "stages.intervene.max_steps=0")
    assert results["answers"] is None
