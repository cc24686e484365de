"""Cases of labels and rows: which number a class gets, which rows are left out, what a model is given of a row."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from qat_lightning.commands.train.preflight import preflight
from qat_lightning.config.builders.models import build_model, load_data
from tests.cases.case import Case, composed, lines, loaded, sentences, write_images, write_rows
from tests.cases.reading import TEXT, rows, tokenized
from tests.cases.teachers import accuracy, taught
from tests.training.runs import planned

LETTERS = ["<|endoftext|>", "<pad>", *string.ascii_lowercase, *string.digits, " "]
THREE = tokenized("data=text", "data.text_columns=[sentence]", "data.num_labels=3")
RUN = (
    "intervention=none",
    "intervention_schedule=none",
    "losses=logits",
    "data.num_labels=2",
    "data.text_columns=[sentence]",
)


def labels(read: Callable[[Path], object]) -> Callable[[Path], list[int]]:
    """Return what gives the classes of the training rows."""
    return lambda folder: [row["labels"] for row in read(folder).train_rows]  # type: ignore[attr-defined]


def texts(*words: str) -> str:
    return lines([{"sentence": f"film {number}", "label": word} for number, word in enumerate(words)])


def numbers(*values: int) -> Callable[[Path], None]:
    """Return what writes a ClassLabel column of entailment, neutral and contradiction."""
    features = Features({
        "sentence": Value("string"),
        "label": ClassLabel(names=["entailment", "neutral", "contradiction"]),
    })  # fmt: skip
    columns = {"sentence": ["film"] * len(values), "label": list(values)}

    def write(folder: Path) -> None:
        for split in ("train", "validation"):
            Dataset.from_dict(columns, features).to_parquet(folder / f"{split}.parquet")

    return write


def digits_as_text(folder: Path) -> None:
    taught(folder)
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    write_rows(folder, "jsonl", lines([row | {"label": str(row["label"])} for row in rows]))


def letters(side: str, *sentences: str) -> Callable[[Path], None]:
    """Return what writes texts, and a tokenizer without special tokens around a text, as GPT-2's."""

    def write(folder: Path) -> None:
        write_rows(folder, "jsonl", lines([{"sentence": text, "label": row % 2} for row, text in enumerate(sentences)]))
        vocabulary = Tokenizer(WordLevel({letter: number for number, letter in enumerate(LETTERS)}, unk_token=" "))
        vocabulary.pre_tokenizer = Split("", "isolated")
        PreTrainedTokenizerFast(
            tokenizer_object=vocabulary, eos_token=LETTERS[0], pad_token=LETTERS[1], padding_side=side
        ).save_pretrained(folder / "tokenizer")

    return write


def decoder(folder: Path) -> list[list[int]]:
    """Return the answers of a GPT-2 of random weights to each row beside the others, and alone, to three places."""
    size = f"model.architecture.vocab_size={len(LETTERS)}"
    words = ("model=tiny_gpt2", size, "data=text", f"data.tokenizer={folder / 'tokenizer'}", "data.max_length=32")
    config = composed(folder, *words, *RUN)
    data = load_data(config)
    torch.manual_seed(0)
    model = build_model(config, data).eval()
    batches = [data.validation_rows, *([row] for row in data.validation_rows)]
    with torch.no_grad():
        answers = [
            model(**{name: value for name, value in data.collate(batch).items() if name != "labels"}).logits
            for batch in batches
        ]
    return [[round(value, 3) for value in row] for row in (answers[0] - torch.cat(answers[1:])).abs().tolist()]


def roberta(**changed: int) -> Callable[[Path], None]:
    """Return what writes rows, their tokenizer of single characters and a RoBERTa."""

    def write(folder: Path) -> None:
        letters("right", *(row["sentence"] for row in sentences(4)))(folder)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
        architecture = RobertaConfig(vocab_size=len(LETTERS), **sizes | changed)
        RobertaForSequenceClassification(architecture).save_pretrained(folder / "tokenizer")

    return write


def rehearsed(folder: Path) -> str:
    words = (f"model.path={folder / 'tokenizer'}", "data=text", "data.max_length=16")
    config = composed(folder, *words, *RUN)
    run = planned(config)
    preflight(run, build_model(config, run.data))
    return "rehearsed"


def untokenized(folder: Path) -> None:
    """Write a model as `save_pretrained` of the model alone does."""
    roberta(max_position_embeddings=18)(folder)
    for file in (folder / "tokenizer").glob("tokenizer*"):
        file.unlink()


def vit(folder: Path) -> None:
    """Write images, and a ViT whose processor scales by a mean and a deviation of its own."""
    write_images(
        folder, *(f"{split}/{name}" for split in ("train", "validation") for name in ("cat/0.png", "dog/0.png"))
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=2, **sizes))
    model.save_pretrained(folder / "model")
    (folder / "model" / "preprocessor_config.json").write_text('{"image_mean": [0.2], "image_std": [0.4]}')


def red(folder: Path) -> list[float]:
    """Return the three channels of the cat, which is red."""
    data = loaded(
        folder, "model=vit_base", f"model.path={folder / 'model'}", "data=images", "data.num_labels=2", "data.size=8"
    )
    return [round(value, 4) for value in data.example_batch(1)["pixel_values"][0, :, 0, 0].tolist()]


def three_images(folder: Path) -> list[int]:
    data = loaded(folder, "model=tiny_vit", "data=images", "data.num_labels=3")
    return data.example_batch(9)["labels"].tolist()


LABELS = {
    "c07 a dash for no label": Case(rows("jsonl", texts("b", "-", "a", "c", "a")), labels(THREE), [1, 0, 2, 0]),
    "c07b minus one for no label": Case(numbers(0, -1, 2, 1), labels(THREE), [0, 2, 1]),
    "c08 digits as text": Case(digits_as_text, accuracy("model=bert_base"), 1.0),
    "c14 a model without its tokenizer": Case(
        untokenized, rehearsed, refused=r"no tokenizer in '.*', which has no file with a vocabulary: .* data\.tokenizer=FOLDER"
    ),
    "c14 a text without tokens": Case(letters("right", "a film", "", "a", "no"), decoder, [[0.0, 0.0]] * 4),
    "c22 a class that validation lacks": Case(
        lambda folder: write_images(
            folder, "train/cat/0.png", "train/dog/0.png", "train/owl/0.png", "validation/cat/0.png", "validation/owl/0.png"
        ),
        three_images,
        [0, 2],
    ),
    "c23 the model's own mean and deviation": Case(vit, red, [2.0, -0.5, -0.5]),
    "c26 a tokenizer that pads on the left": Case(letters("left", "a long film", "a", "no", "ok"), decoder, [[0.0, 0.0]] * 4),
    "c30 fewer positions than RoBERTa's table": Case(
        roberta(max_position_embeddings=16), rehearsed, refused="beyond the model's 14 positions: give data.max_length=14"
    ),
    "c30 just enough positions": Case(roberta(max_position_embeddings=18), rehearsed, "rehearsed"),
    "c49 one class": Case(rows("jsonl", texts("pos", "pos")), TEXT, refused=r"of one class, 'pos', .*data\.path"),
}  # fmt: skip
