"""Sentences without labels and pairs to score: rows, targets, metric, and the argument that each error names."""

import math

import pytest
import torch

from qat_lightning.data import SentenceEmbeddingData, SimilaritySpearman
from tests.data.conftest import WORDS

SENTENCES = "sentence,other\nthe cat sat,a dog\nthe dog,\nthe cat sat,the film is good\n"
PAIRS = "first,second,score\nthe cat,a cat sat,4.5\nthe film,a dog,1\nthe dog ran,a dog ran,5\n"
ONE_HOT = torch.eye(len(WORDS))


def bag_of_words(batches):
    """Stands for the teacher: the number of times that each word occurs."""
    return torch.cat([(ONE_HOT[b["input_ids"]] * b["attention_mask"][..., None]).sum(1) for b in batches])


@pytest.fixture
def sentences(tokenizer, tmp_path):
    def make(**changed):
        arguments = {
            "path": str(tmp_path),
            "text_columns": ["sentence"],
            "tokenizer": tokenizer,
            "batch_size": 2,
            "max_length": 8,
            "metrics": {"spearman": SimilaritySpearman()},
            "metric": "spearman",
        }
        data = SentenceEmbeddingData(**(arguments | changed))
        data.embed = bag_of_words
        return data

    return make


def pairs(sentences, write, **changed):
    write(SENTENCES, PAIRS)
    return sentences(pair_columns=["first", "second"], score_column="score", **changed)


def test_each_sentence_is_trained_on_once(sentences, write):
    write(SENTENCES)
    data = sentences(text_columns=["sentence", "other"])
    data.load()
    words = [[WORDS[token] for token in row["input_ids"][1:-1]] for row in data.train_rows]
    assert words == [["the", "cat", "sat"], ["the", "dog"], ["a", "dog"], ["the", "film", "is", "good"]]
    assert set(data.collate(data.train_rows[:2])) == {"input_ids", "token_type_ids", "attention_mask"}


def test_pairs_are_neighbours_in_a_batch_and_have_both_targets(sentences, write):
    data = pairs(sentences, write)
    batch = data.example_batch(2)
    assert [data.tokens({"input_ids": row[None]})[1:3] for row in batch["input_ids"]] == [
        ["the", "cat"], ["a", "cat"], ["the", "film"], ["a", "dog"],
    ]  # fmt: skip
    # [CLS] the cat [SEP] and [CLS] a cat sat [SEP] share three words: 3 / (2·√5); two of four in the second pair
    assert batch["labels"][:, 0].tolist() == pytest.approx([3 / (2 * math.sqrt(5)), 0.5])
    assert batch["labels"][:, 1].tolist() == [4.5, 1.0]
    similarity, targets = data.predict([torch.tensor([[1.0, 0], [0, 2], [3, 3], [1, 1]])], batch)
    assert similarity.tolist() == pytest.approx([0.0, 1.0])
    assert torch.equal(targets, batch["labels"])


def test_random_pairs_are_the_same_in_every_run(sentences, write):
    write("sentence\n" + "".join(f"{first} {second}\n" for first in WORDS[5:] for second in WORDS[5:]))
    first, second = (sentences(seed=seed) for seed in (0, 1))
    assert torch.equal(first.example_batch(9)["input_ids"], second.example_batch(9)["input_ids"])
    assert first.example_batch(1)["labels"][:, 1].isnan().all()
    assert first.example_batch(30)["labels"][:, 0].unique().numel() > 3


def test_fingerprint_changes_with_the_rows_and_not_with_the_rounding_of_the_teacher(sentences, write):
    data, other = (pairs(sentences, write) for _ in range(2))
    other.embed = lambda batches: bag_of_words(batches) + 1e-3
    assert data.fingerprint() == other.fingerprint()
    write(SENTENCES, PAIRS.replace("4.5", "4.25"))
    assert sentences(pair_columns=["first", "second"], score_column="score").fingerprint() != data.fingerprint()


def test_evaluation_reads_the_pairs_alone(sentences, write):
    data = pairs(sentences, write, train_split="validation")
    data.load()
    assert len(data.validation_rows) == 3


@pytest.mark.parametrize(("target", "expected"), [("teacher", 1.0), ("human", -1.0)])
def test_metric_correlates_with_its_target(target, expected):
    metric = SimilaritySpearman(target)
    metric.update(torch.tensor([0.1, 0.7]), torch.tensor([[0.0, 5.0], [0.1, 3.0]]))
    metric.update(torch.tensor([0.9]), torch.tensor([[0.2, 1.0]]))
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-5)
    metric.update(torch.tensor([0.9]), torch.tensor([[0.2, torch.nan]]))
    assert metric.compute().isnan() == (target == "human")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text_columns": "sentence"}, r"text_columns='sentence' must be a list"),
        ({"pair_columns": ["first"]}, r"pair_columns=\['first'\] must be a list of two"),
        ({"score_column": "score"}, r"score_column='score' needs pair_columns"),
        ({"text_columns": ["text"]}, r"no column 'text' .*text_columns"),
        ({"pair_columns": ["first", "third"]}, r"no column 'third' .*pair_columns"),
        ({"pair_columns": ["first", "second"], "score_column": "second"}, r"not a finite number.*score_column"),
    ],
)
def test_bad_argument_is_named(sentences, write, changed, message):
    write(SENTENCES, PAIRS)
    with pytest.raises(ValueError, match=message):
        sentences(**changed).load()


def test_data_without_a_teacher_says_how_to_give_one(sentences, write):
    data = pairs(sentences, write)
    data.embed = None
    with pytest.raises(ValueError, match="set `embed`"):
        data.load()
    with pytest.raises(ValueError, match="choose teacher or human"):
        SimilaritySpearman("student")  # type: ignore[arg-type]
