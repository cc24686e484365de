"""Random rows have the shapes that were asked for, and are the same every time."""

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy

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
