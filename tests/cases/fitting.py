"""Cases of models that do not fit as they are: token types beyond the table, layers of two kinds of which some are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Qwen2Config, Qwen2ForCausalLM

from qat_lightning.commands.train.preflight import check_tokens
from qat_lightning.config.builders.models import build_model, build_student, load_data
from tests.cases.case import VOCABULARY, Case, composed, lines, sentences, write_rows, write_tokenizer

ROBERTA = ("model=tiny", "model.architecture.model_type=roberta", f"model.architecture.vocab_size={VOCABULARY}")
PAIRS = ("data=text", "data.text_columns=[sentence,second]", "data.num_labels=2", "data.max_length=16")


def pairs(folder: Path) -> None:
    write_tokenizer(folder / "tokenizer")
    write_rows(folder, "jsonl", lines(sentences(4, second="it was")))


def one_type(folder: Path) -> None:
    """Hold pairs of texts against a RoBERTa of one token type."""
    given = ("++model.architecture.type_vocab_size=1", f"data.tokenizer={folder / 'tokenizer'}")
    config = composed(folder, *ROBERTA, *PAIRS, *given)
    data = load_data(config)
    check_tokens(data, build_model(config, data))


def decoder(folder: Path) -> None:
    """Write texts, and a Qwen2 of four layers, the last two of which attend to a window."""
    write_tokenizer(folder / "model")
    write_rows(folder, "jsonl", lines([{"text": "once upon a time"}]))
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=1, **sizes, **window))
    model.save_pretrained(folder / "model")


def kept(folder: Path) -> list[str]:
    """Return the kind of attention of each layer that a student keeps."""
    given = ("model=llama", f"model.path={folder / 'model'}", "model.student_layers=[1,3]", "data=language")
    config = composed(
        folder, *given, "losses=logits", "intervention=none", "intervention_schedule=none", "data.max_length=16"
    )
    data = load_data(config)
    student: Any = build_student(config, build_model(config, data), data)
    return student.config.layer_types


FITTING = {
    "c18 layers that are kept": Case(decoder, kept, ["full_attention", "sliding_attention"]),
    "c30 a single token type": Case(
        pairs, one_type, refused=r"token type 1, and the model knows 0 to 0: .*data\.tokenizer"
    ),
}
