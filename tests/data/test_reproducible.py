"""What must not depend on the seed, the batch size or a second reading, and what the fingerprint must see."""

import itertools

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy
from transformers import BertTokenizerFast

from qat_lightning.data import text_classification as text_module
from qat_lightning.data.image_classification import Digits
from tests.data.conftest import MODEL_MAX_LENGTH, WORDS

ROWS = "sentence,label\nthe cat sat,1\nthe dog,0\nthe film is not very good,1\n"
SORTED = "sentence,label\n" + "the cat,0\n" * 50 + "a dog,1\n" * 50


def digits(**changed):
    common = {"batch_size": 32, "num_labels": 10, "metrics": {"a": MulticlassAccuracy(10)}, "metric": "a"}
    return Digits(**common | changed)


def test_calibration_batches_are_equal_for_every_seed_and_batch_size():
    """The batches and not only their rows: padding, and with it what is calibrated, moves with a batch's bounds."""
    batches = [digits(**changed).calibration_batches(40) for changed in ({}, {"seed": 5}, {"batch_size": 7})]
    assert [len(batch["labels"]) for batch in batches[0]] == [32, 8]
    for first, second, third in zip(*batches, strict=True):
        assert torch.equal(first["pixel_values"], second["pixel_values"])
        assert torch.equal(first["pixel_values"], third["pixel_values"])


def test_calibration_rows_are_of_the_training_split_mixed_and_no_more_than_there_are(text, write):
    write(SORTED, "sentence,label\nfilm,1\nfilm,0\n")
    batches = text().calibration_batches(20)
    labels = list(itertools.chain(*(batch["labels"].tolist() for batch in batches)))
    assert len(labels) == 20
    assert 5 <= sum(labels) <= 15
    assert not any((batch["input_ids"] == WORDS.index("film")).any() for batch in batches)
    assert sum(len(batch["labels"]) for batch in text().calibration_batches(999)) == 100


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_each_text_keeps_its_label_however_many_are_tokenized_at_once(text, write, monkeypatch, chunk):
    write("sentence,label\nthe,0\na,1\ncat,2\ndog,3\nsat,4\n")
    monkeypatch.setattr(text_module, "CHUNK", chunk)
    data = text(num_labels=5)
    batch = data.example_batch(5)
    assert data.tokenizer.convert_ids_to_tokens(batch["input_ids"][:, 1]) == ["the", "a", "cat", "dog", "sat"]
    assert batch["labels"].tolist() == [0, 1, 2, 3, 4]


def test_whole_numbers_written_with_a_point_are_classes(text, write):
    """As pandas writes a column that once had a gap."""
    write("sentence,label\na,1.0\nb,0.0\n")
    labels = text().example_batch(2)["labels"]
    assert labels.dtype == torch.int64
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize("seed", [0, 7])
def test_a_limited_training_split_mixes_the_classes_of_a_sorted_file(text, write, seed):
    write(SORTED)
    data = text(train_limit=20, validation_limit=10, seed=seed)
    data.load()
    labels = [row["labels"] for row in data.train_rows]
    assert len(labels) == 20
    assert 5 <= sum(labels) <= 15
    assert [row["labels"] for row in data.validation_rows] == [0] * 10  # the first, in order


def test_limited_rows_are_the_same_for_every_seed_and_only_their_order_differs(text, write):
    rows = [" ".join(words) for words in itertools.permutations(["the", "cat", "sat", "good"])]
    write("sentence,label\n" + "".join(f"{row},{number % 2}\n" for number, row in enumerate(rows)))
    first, second = (text(train_limit=12, seed=seed, batch_size=12) for seed in (0, 1))
    assert first.fingerprint() == second.fingerprint()
    orders = [next(iter(data.train_dataloader()))["input_ids"].tolist() for data in (first, second)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_reading_writes_nothing_beside_the_data(text, write, tmp_path):
    def held():
        return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in tmp_path.rglob("*")}

    write(ROWS)
    before = held()
    data = text()
    data.fingerprint()
    assert len(list(data.train_dataloader())) == 2
    assert held() == before


def test_fingerprint_sees_another_tokenizer_but_not_where_it_lies(text, write, tmp_path):
    write(ROWS)
    before = text().fingerprint()
    for name, words in (("same", WORDS), ("other", [*WORDS[:5], *reversed(WORDS[5:])])):
        vocabulary = {word: number for number, word in enumerate(words)}
        BertTokenizerFast(vocab=vocabulary, model_max_length=MODEL_MAX_LENGTH).save_pretrained(tmp_path / name)
    assert text(tokenizer=str(tmp_path / "same")).fingerprint() == before
    assert text(tokenizer=str(tmp_path / "other")).fingerprint() != before


@pytest.mark.parametrize("limit", ["train_limit", "validation_limit"])
def test_fingerprint_sees_a_limit_that_cuts_and_none_that_does_not(text, write, limit):
    write(ROWS)
    before = text().fingerprint()
    assert text(**{limit: 2}).fingerprint() != before
    assert text(**{limit: 3}).fingerprint() == before


def test_fingerprint_sees_rows_that_change_places(text, write):
    write(ROWS)
    before = text().fingerprint()
    head, first, *rest = ROWS.splitlines(keepends=True)
    write("".join([head, *rest, first]), ROWS)
    assert text().fingerprint() != before


def test_fingerprint_sees_whether_labels_are_classes_or_scores(text, write):
    write("sentence,label\na cat,0\na dog,1\n")
    assert text(num_labels=1).fingerprint() != text(num_labels=2).fingerprint()


def test_the_only_file_whose_name_begins_with_the_split_is_read(text, write, tmp_path):
    write(ROWS, "sentence,label\na dog,0\n")
    (tmp_path / "validation.csv").rename(tmp_path / "validation_matched.csv")
    assert text().example_batch(9)["labels"].tolist() == [0]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("validation.csv", "sentence,label\n", r"the validation split of .* is empty: give data\.path"),
        ("train.jsonl", "", r"the train split of .* is empty: give data\.path"),
        ("train.parquet", "PAR1, then noise", r"train\.parquet' cannot be read \(.*magic bytes.*\): repair it"),
        (None, None, r"has no file of the train split, it holds validation\.csv: give it train\.parquet"),
    ],
)
def test_a_split_without_rows_is_refused_in_one_line(text, write, tmp_path, name, content, words):
    write(ROWS)
    if name != "validation.csv":
        (tmp_path / "train.csv").unlink()
    if name is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=words) as error:
        text().load()
    assert "\n" not in str(error.value)
