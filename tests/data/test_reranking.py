"""Queries and passages: groups, binary and graded relevance, nDCG and MRR."""

import pytest
import torch
from torch import nn

from qat_lightning.data.reranking import RankingScore, RerankingData
from qat_lightning.distillation.losses import TaskLoss

ROWS = "query,passage,id,label\nthe cat,sat,1,1\nthe cat,ran,1,0\na dog,ran,2,0\na dog,sat,2,0\na dog,is,2,1\n"


@pytest.fixture
def pairs(tokenizer, tmp_path):
    """A RerankingData on `tmp_path`, any argument changed."""

    def make(**changed):
        arguments = {"path": str(tmp_path), "text_columns": ["query", "passage"], "tokenizer": tokenizer, "max_length": 8,
                     "batch_size": 2, "metrics": {"ndcg": RankingScore()}, "metric": "ndcg"}  # fmt: skip
        return RerankingData(**(arguments | changed))

    return make


@pytest.mark.parametrize("changed", [{}, {"group_column": "id"}])
def test_rows_of_a_query_form_a_group(changed, pairs, write):
    write(ROWS)
    batch = pairs(**changed).example_batch(5)
    assert batch["group"].tolist() == [0, 0, 1, 1, 1]
    assert batch["labels"].tolist() == [[1], [0], [0], [0], [1]]


def test_the_loss_is_binary_cross_entropy_or_of_graded_relevance_the_squared_error(pairs, write):
    logits, labels = torch.tensor([[1.0], [-2.0], [0.5], [0.0], [3.0]]), torch.tensor([[1.0], [0], [0], [0], [1]])
    write(ROWS)
    loss = TaskLoss()({"logits": [logits]}, {}, pairs().example_batch(5))
    assert loss == pytest.approx(float(nn.BCEWithLogitsLoss()(logits, labels)))
    write(ROWS.replace("sat,1,1", "sat,1,3"))
    loss = TaskLoss()({"logits": [logits]}, {}, pairs().example_batch(5))
    labels[0] = 3
    assert loss == pytest.approx(float(nn.MSELoss()(logits, labels)))


def test_scores_have_hand_computed_values():
    # query 0: relevances 3, 0, 1 in this order; query 1: the relevant passage is second; query 2 has none
    scores = torch.tensor([0.9, 0.8, -0.7, -0.2, -0.1, 0.5, 0.4])
    targets = torch.tensor([[3.0, 0], [0, 0], [1, 0], [1, 1], [0, 1], [0, 2], [0, 2]])
    log3 = 1.584962500721156
    expected = {"ndcg": ((3 + 1 / 2) / (3 + 1 / log3) + 1 / log3) / 2, "mrr": 0.75}
    for score, value in expected.items():
        metric = RankingScore(score)
        for rows in (slice(0, 4), slice(4, 7)):  # a query may be divided between batches
            metric.update(scores[rows], targets[rows])
        assert float(metric.compute()) == pytest.approx(value, abs=1e-6)
    first = RankingScore("mrr", k=1)
    first.update(scores, targets)
    assert float(first.compute()) == 0.5


@pytest.mark.parametrize(
    ("rows", "changed", "words"),
    [
        (ROWS + "the film,is,3,1\n", {}, r"1 of 3 queries of the validation split have one passage.*group_column"),
        (ROWS.replace(",1\n", ",0\n"), {}, r"no query of the validation split.*label_column"),
        (ROWS.replace(",1\n", ",-3\n"), {}, r"label_column='label' has the relevance -3"),
        (ROWS, {"group_column": "x"}, r"no column 'x'.*group_column"),
        (ROWS, {"text_columns": ["query"]}, r"text_columns="),
    ],
)
def test_errors_name_the_argument(rows, changed, words, pairs, write):
    write(rows)
    with pytest.raises(ValueError, match=words):
        pairs(**changed).load()


def test_training_rows_may_have_no_labels(pairs, write):
    write("query,passage\nthe cat,sat\n", ROWS)
    data = pairs(train_labels=False)
    assert "labels" not in data.calibration_batches(1)[0]
    assert data.example_batch(1)["labels"].tolist() == [[1]]


def test_queries_without_a_relevant_passage_are_counted(pairs, write):
    write(ROWS + "the film,is,3,0\nthe film,ran,3,0\n")
    data = pairs()
    data.load()
    assert any(note.startswith("1 of 3 queries") for note in data.notes)
