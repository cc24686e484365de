"""A tokenizer of a few words, folders of a few rows: everything is written by the test that reads it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torchmetrics.classification import MulticlassAccuracy
from transformers import BertTokenizerFast

from qat_lightning.data.text_classification import TextClassificationData

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += ["the", "a", "cat", "dog", "sat", "ran", "good", "bad", "film", "is", "not", "very"]
MODEL_MAX_LENGTH = 16


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a BERT tokenizer that knows WORDS."""
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    BertTokenizerFast(vocab=vocabulary, model_max_length=MODEL_MAX_LENGTH).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def text(tokenizer: str, tmp_path: Path) -> Callable[..., TextClassificationData]:
    """A TextClassificationData on `tmp_path`, any argument changed."""

    def make(**changed: Any) -> TextClassificationData:
        arguments = {
            "path": str(tmp_path),
            "text_columns": ["sentence"],
            "tokenizer": tokenizer,
            "max_length": 8,
            "batch_size": 2,
            "num_labels": 2,
            "metrics": {"accuracy": MulticlassAccuracy(2)},
            "metric": "accuracy",
        }
        return TextClassificationData(**(arguments | changed))

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write both splits as text files; validation is as train unless given."""

    def both(train: str, validation: str | None = None, suffix: str = "csv") -> Path:
        (tmp_path / f"train.{suffix}").write_text(train, encoding="utf-8")
        (tmp_path / f"validation.{suffix}").write_text(train if validation is None else validation, encoding="utf-8")
        return tmp_path

    return both
