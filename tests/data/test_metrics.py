"""The metrics over several batches, on ties, and where a formula divides by zero; test_configurations has the rest."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from qat_lightning.config.instantiate import create
from qat_lightning.config.schema import CONF, resolve


def metrics(task):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return create(resolve(compose("config", overrides=[f"data={task}"])).data, "data").metrics


def value(metric, *batches):
    """Of (predictions, labels) fed one after the other."""
    for predictions, labels in batches:
        metric.update(torch.tensor(predictions), torch.tensor(labels))
    return float(metric.compute())


def near(number):
    return pytest.approx(number, abs=1e-5)


# tp 2, fp 1, tn 1, fn 0. The batches' own F1 are 1 and 2/3, their Matthews 0 and 1/2: no mean of them is right
@pytest.mark.parametrize(
    ("task", "name", "expected"), [("mrpc", "f1", 0.8), ("qqp", "f1", 0.8), ("cola", "matthews", 2 / 12**0.5)]
)
def test_classes_are_counted_over_all_batches(task, name, expected):
    assert value(metrics(task)[name], ([1], [1]), ([1, 1, 0], [1, 0, 0])) == near(expected)


def test_accuracy_weighs_rows_not_batches():
    assert value(metrics("rte")["accuracy"], ([1], [1]), ([1, 1, 0], [1, 0, 1])) == near(2 / 4)  # the mean is 2/3


# deviations (6 −3 −1 −2) and (1.5 −1.5 .5 −.5): Pearson 14/√(50·5); the ranks agree. Each batch's own value is 1
@pytest.mark.parametrize(("name", "expected"), [("pearson", 14 / 250**0.5), ("spearman", 1.0)])
def test_scores_are_correlated_over_all_batches(name, expected):
    batches = ([10.0, 1.0], [4.0, 1.0]), ([3.0, 2.0], [3.0, 2.0])
    assert value(metrics("stsb")[name], *batches) == near(expected)


def test_equal_scores_share_their_mean_rank():
    """Ranks (1 2 3 4) and (1.5 1.5 3 4), deviations (−1.5 −.5 .5 1.5) and (−1 −1 .5 1.5): 4.5/√(5·4.5)."""
    batch = [0.1, 0.2, 0.9, 5.0], [1.0, 1.0, 2.0, 3.0]
    assert value(metrics("stsb")["spearman"], batch) == near(4.5 / 22.5**0.5)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_correlation_ignores_the_scale_of_the_scores_but_not_their_sign(name):
    assert value(metrics("stsb")[name], ([50.0, 30.0, 10.0], [5.0, 3.0, 1.0])) == near(1)
    assert value(metrics("stsb")[name], ([-5.0, -3.0, -1.0], [5.0, 3.0, 1.0])) == near(-1)


def test_matthews_of_opposite_predictions_is_minus_one_and_of_one_class_zero():
    assert value(metrics("cola")["matthews"], ([0, 1, 1, 0], [1, 0, 0, 1])) == near(-1)
    assert value(metrics("cola")["matthews"], ([1, 1, 1, 1], [1, 0, 0, 1])) == 0  # what CoLA falls back to; not NaN


def test_f1_is_of_class_one_and_zero_where_that_is_never_predicted():
    assert value(metrics("mrpc")["f1"], ([0, 0, 1], [0, 0, 0])) == 0  # class 0's would be 4/5
    assert value(metrics("mrpc")["f1"], ([0, 0], [1, 0])) == 0
