"""Cases of models: the answers of a model that was fine-tuned elsewhere, or why it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from qat_lightning.config.builders.models import build_model, load_data
from tests.cases.case import VOCABULARY, Case, composed, lines, write_rows, write_tokenizer

CLASSES = 12
TEXTS = [f"film {number}" for number in range(CLASSES)]


def taught(folder: Path) -> None:
    """Write a model of random weights whose head gives text n of `TEXTS` the class n, exactly; and the rows."""
    write_tokenizer(folder / "model")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, num_labels=CLASSES, **sizes)).eval()
    inputs = AutoTokenizer.from_pretrained(folder / "model")(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        pooled = model.bert(**inputs).pooler_output.double()
        spread = pooled - pooled.mean(0)
        head = torch.linalg.lstsq(spread, 10 * torch.eye(CLASSES).double() - 10 / CLASSES).solution.T
        model.classifier.weight.copy_(head)
        model.classifier.bias.copy_(-head @ pooled.mean(0))
    model.save_pretrained(folder / "model")
    write_rows(folder, "jsonl", lines([{"sentence": text, "label": number} for number, text in enumerate(TEXTS)]))


def prefixed(prefix: str) -> Callable[[Path], None]:
    """Return what writes the same with another name for each tensor, as a wrapped model is saved."""

    def write(folder: Path) -> None:
        taught(folder)
        file = folder / "model" / "model.safetensors"
        save_file({prefix + name: tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})

    return write


def accuracy(*words: str) -> Callable[[Path], float]:
    """Return what scores the model of a command as it is loaded."""

    def scored(folder: Path) -> float:
        given = ("data=text", "data.text_columns=[sentence]", f"data.num_labels={CLASSES}", "data.max_length=32")
        path = (f"model.path={folder / 'model'}", "stages.teacher.max_epochs=0")
        config = composed(folder, *given, *path, *words)
        data = load_data(config)
        batch = data.example_batch(CLASSES)
        labels = batch.pop("labels")
        with torch.no_grad():
            answers = build_model(config, data).eval()(**batch).logits.argmax(-1)
        return float((answers == labels).double().mean())

    return scored


TEACHERS = {
    "c08 a model.path without model=": Case(taught, accuracy(), 1.0),
    **{
        f"c08 names that begin with {prefix}": Case(
            prefixed(prefix), accuracy("model=bert_base"), refused=rf"missing: \d+ .*save the model itself, without .*'{prefix}'"
        )
        for prefix in ("module.", "_orig_mod.")
    },
}  # fmt: skip
