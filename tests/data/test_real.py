"""Real data and a real tokenizer, from the folder that QAT_SHARED names, or ../shared beside the checkout."""

import os
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from qat_lightning.cli import CONF
from qat_lightning.config import create, resolve

SHARED = Path(os.environ.get("QAT_SHARED", Path(__file__).parents[2].parent / "shared"))
TOKENIZER = SHARED / "models" / "all-MiniLM-L6-v2"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (SHARED / "data").is_dir() or not TOKENIZER.is_dir(), reason=f"no data or models in {SHARED}"
    ),
]


def real(choice, folder, *overrides):
    places = (f"data={choice}", f"data.path={SHARED / 'data' / folder}", f"model.path={TOKENIZER}")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = resolve(compose("config", overrides=[*places, *overrides]))
    data = create(config["data"], "data")
    data.load()
    return data


def counts(rows):
    return torch.bincount(torch.tensor([row["labels"] for row in rows])).tolist()


@pytest.mark.parametrize(
    ("task", "train", "validation", "names"),
    [
        ("cola", [2528, 6023], [322, 721], ["unacceptable", "acceptable"]),
        ("sst2", [29780, 37569], [428, 444], ["negative", "positive"]),
        ("rte", [1249, 1241], [146, 131], ["entailment", "not_entailment"]),
        ("wnli", [323, 312], [40, 31], ["not_entailment", "entailment"]),
    ],
)
def test_glue_has_its_official_rows(task, train, validation, names):
    data = real(task, f"glue/{task}")
    assert counts(data.train_rows) == train
    assert counts(data.validation_rows) == validation
    assert data.label_names == names
    assert max(len(row["input_ids"]) for row in data.train_rows) <= data.max_length


def test_a_sentence_comes_back_from_its_numbers():
    data = real("sst2", "glue/sst2", "data.train_limit=8")
    words = data.tokens(data.example_batch(1))
    assert " ".join(words[1:-1]).startswith("it ' s a charming and often affecting journey")


def test_mnli_without_a_training_file_says_so_and_its_small_split_works():
    with pytest.raises(ValueError, match=r"no file of the train split, it holds validation_matched\.parquet"):
        real("mnli", "glue/mnli")
    data = real("mnli", "small/mnli_from_dev", "data.validation_split=validation")
    assert counts(data.train_rows) == [2758, 2478, 2550]
    assert counts(data.validation_rows) == [721, 645, 663]


def test_sick_relatedness_is_a_regression():
    columns = ("data.text_columns=[sentence1,sentence2]", "data.label_column=relatedness_score")
    data = real("text_regression", "sick", *columns)
    assert (len(data.train_rows), len(data.validation_rows)) == (4500, 500)
    labels = torch.tensor([row["labels"] for row in data.train_rows])
    assert labels.dtype == torch.float32
    assert 1 <= labels.min() < 2
    assert 4 < labels.max() <= 5
    assert data.example_batch(4)["token_type_ids"].max() == 1


def test_trec_has_six_classes_and_its_test_file_validates():
    names = ("data.num_labels=6", "data.validation_split=test")
    with pytest.raises(ValueError, match=r"no column 'question', it has "):
        real("text", "trec", *names, "data.text_columns=[question]")
    data = real("text", "trec", *names, "data.text_columns=[text]")
    assert counts(data.train_rows) == [86, 1162, 1250, 1223, 835, 896]
    assert counts(data.validation_rows) == [9, 138, 94, 65, 81, 113]
