"""Small whole runs for the tests: a two-layer model, random rows, a few steps a stage."""

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from qat_lightning.commands.train.pipeline import Run
from qat_lightning.commands.train.run import run
from qat_lightning.config.builders.models import load_data
from qat_lightning.config.schema import CONF, RunConfig, resolve
from qat_lightning.config.validation import check
from qat_lightning.io.screen import console

SMALL = (
    "model=tiny",
    "data=random_text",
    "data.rows=24",
    "data.batch_size=8",
    "stages.teacher.max_steps=4",
    "stages.intervene.max_steps=6",
    "stages.intervene.validate_every=2",
    "stages.train.max_steps=14",
    "stages.train.max_epochs=null",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "threads=1",
    "optimizer.lr=1e-3",
    "export.onnx=false",  # it takes seconds; tests/commands/test_export.py asks for it
)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def without(*starts: str) -> list[str]:
    """Return the overrides of `SMALL` that do not begin so."""
    return [word for word in SMALL if not word.startswith(starts)]


@functools.cache
def _composed(words: tuple[str, ...], checked: bool) -> RunConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = resolve(compose("config", overrides=list(words)))
    if checked:
        check(config)
    return config


def composed(*overrides: str, small: Sequence[str] = SMALL, checked: bool = True) -> RunConfig:
    """Compose and check a configuration: `small`, then the overrides."""
    return copy.deepcopy(_composed((*small, *overrides), checked))


resolved = functools.partial(composed, small=(), checked=False)
"""Composes a configuration of the overrides alone, unchecked."""


def save_tokenizer(folder: Path, *words: str) -> Path:
    """Save a tokenizer that knows these words, after BERT's special tokens."""
    BertTokenizerFast(vocab={word: number for number, word in enumerate([*SPECIAL, *words])}).save_pretrained(folder)
    return folder


def text_config(folder: Path, *overrides: str, data: str = "text") -> RunConfig:
    """Compose a small run on the text files of a folder, which holds a tokenizer as well."""
    own = (f"data={data}", f"data.path={folder}", f"data.tokenizer={folder / 'tokenizer'}", "data.max_length=16")
    return composed(*own, *(["data.num_labels=2"] if data == "text" else []), *overrides, small=without("data"))


def small_run(folder: Path, *overrides: str, small: Sequence[str] = SMALL) -> dict[str, Any]:
    return run(composed(*overrides, small=small), folder, list(overrides))


def planned(config: RunConfig, folder: Path = Path("never_made")) -> Run:
    """A run with its data read and its stages planned: what preflight checks."""
    data = load_data(config)
    made = Run(config, folder, data, console(quiet=True), config)
    made.plan()
    return made


def saved_tiny(folder: Path, **changes: Any) -> Path:
    """A folder with the model of `model=tiny`, saved by transformers: what a user has who fine-tuned one."""
    architecture = {name: value for name, value in composed().model.architecture.items() if name != "model_type"}
    torch.manual_seed(41)  # other weights than those of a run
    BertForSequenceClassification(BertConfig(**architecture | changes)).save_pretrained(folder)
    return folder
