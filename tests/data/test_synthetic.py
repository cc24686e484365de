"""Random rows have the shapes that were asked for, and are the same every time."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from torchmetrics.classification import MulticlassAccuracy

from qat_lightning.config.instantiate import create
from qat_lightning.config.schema import CONF, resolve
from qat_lightning.data.synthetic import RandomImages, RandomQuestions, RandomText, RandomTokens

COMMON = {"batch_size": 8, "metrics": {"a": MulticlassAccuracy(3)}, "metric": "a"}


def random_text(**changed):
    return RandomText(**COMMON | {"rows": 40, "length": 9, "vocabulary_size": 12, "num_labels": 3} | changed)


def random_images(**changed):
    return RandomImages(**COMMON | {"rows": 20, "channels": 2, "size": 6, "num_labels": 3} | changed)


def random_questions(**changed):
    return RandomQuestions(**COMMON | {"rows": 40, "length": 9, "vocabulary_size": 12} | changed)


def random_tokens(**changed):
    return RandomTokens(**COMMON | {"rows": 40, "length": 9, "vocabulary_size": 12} | changed)


def configured(choice):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return create(resolve(compose("config", overrides=[f"data={choice}"])).data, "data")


def test_texts_have_several_lengths_and_a_mask_over_their_padding():
    batch = random_text().example_batch(40)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert ids.shape == mask.shape == (40, 9)
    lengths = mask.sum(1)
    assert lengths.min() >= 2
    assert len(lengths.unique()) > 3
    assert torch.equal(mask, (torch.arange(9) < lengths[:, None]).long())
    assert ids[mask == 0].eq(0).all()
    assert ids[mask == 1].min() >= 1
    assert ids.max() == 11


def test_answers_are_spans_behind_the_first_token_and_before_the_padding():
    batch = random_questions().example_batch(40)
    start, end = batch["labels"].T
    lengths = batch["attention_mask"].sum(1)
    assert batch["input_ids"][:, 0].eq(1).all()
    assert lengths.min() == 2
    assert lengths.max() == 9
    assert start.min() == 1
    assert (start <= end).all()
    assert (end < lengths).all()
    assert len((end - start).unique()) > 3


def test_share_of_right_positions_is_over_starts_and_ends_and_ignores_padding():
    """One start of two and one end of two are right, at 9 of 16 positions that the metric knows."""
    data = configured("random_questions")
    short, long = torch.tensor([1, 5, 6]), torch.tensor([1, 7, 8, 9])
    rows = [{"input_ids": short, "labels": torch.tensor([1, 2])}, {"input_ids": long, "labels": torch.tensor([1, 3])}]
    batch = data.collate(rows)
    start, end = torch.zeros(2, 2, 4).unbind()
    start[0, 1], start[1, 2] = 1, 1
    end[0, 3], end[0, 2], end[1, 1] = 9, 1, 1  # 9 stands at padding
    predictions, targets = data.predict([start, end], batch)
    assert predictions.tolist() == [1, 2, 2, 1]
    assert targets.tolist() == [1, 1, 2, 3]
    data.metrics["accuracy"].update(predictions, targets)
    assert data.metrics["accuracy"].compute() == 0.5


def test_labels_of_random_tokens_are_the_tokens_that_follow():
    batch = random_tokens().example_batch(40)
    ids, mask, labels = batch["input_ids"], batch["attention_mask"].bool(), batch["labels"]
    lengths = mask.sum(1)
    assert ids.shape == labels.shape == (40, 9)
    assert lengths.min() >= 2
    followed = mask[:, 1:]
    assert torch.equal(labels[:, :-1][followed], ids[:, 1:][followed])
    assert labels[torch.arange(40), lengths - 1].min() >= 1  # the last token is followed as well
    assert labels[~mask].eq(-100).all()
    assert ids[~mask].eq(0).all()


@pytest.mark.parametrize("make", [random_text, random_images, random_questions, random_tokens])
def test_content_is_the_same_every_time_and_differs_between_the_splits(make):
    data = make()
    torch.manual_seed(5)
    assert make().fingerprint() == data.fingerprint()
    first, second = (data.collate(rows)["labels"].tolist() for rows in (data.train_rows, data.validation_rows))
    assert first != second
