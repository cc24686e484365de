"""A row's answer is its own: it does not depend on the rows beside it, nor on the side where its tokenizer pads."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torchmetrics.classification import MulticlassAccuracy
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
)

from qat_lightning.commands.train.preflight import check_tokens
from qat_lightning.config.builders.models import build_model
from qat_lightning.config.schema import ConfigError, ModelConfig, RunConfig, StageConfig, StagesConfig
from qat_lightning.data.text_classification import TextClassificationData
from qat_lightning.models.capture import SignalCapture

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "a", "long", "text", "of", "many", "words"]
SENTENCES = ["a", "a long text of many words", "", "text of words"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3, "num_labels": 2}
SIZES |= {"intermediate_size": 16, "vocab_size": len(WORDS), "max_position_embeddings": 16}
CONFIGURATIONS = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES, type_vocab_size=1),
    # decoders find a row's last token by the padding token of their own configuration, if it has one
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=16, vocab_size=len(WORDS), initializer_range=0.3,
                       num_labels=2, pad_token_id=2, bos_token_id=0, eos_token_id=2),
    "llama": LlamaConfig(**SIZES, pad_token_id=2),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2),
}  # fmt: skip


@pytest.fixture
def texts(tmp_path):
    """Write sentences with labels 0, 1, 0, … and a tokenizer; returns what makes a TextClassificationData of them."""

    def make(sentences=SENTENCES, side="right", eos="</s>", inputs=("input_ids",), **changed):
        vocabulary = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
        vocabulary.pre_tokenizer = Whitespace()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=vocabulary, pad_token="<pad>", unk_token="<unk>", eos_token=eos, padding_side=side,
            model_input_names=list(inputs),
        )  # fmt: skip
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        rows = [json.dumps({"text": text, "label": number % 2}) for number, text in enumerate(sentences)]
        for split in ("train", "validation"):
            (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
        common = {"batch_size": 4, "metrics": {"a": MulticlassAccuracy(2)}, "metric": "a", "num_labels": 2}
        common |= {"text_columns": ["text"], "max_length": 12, "tokenizer": str(tmp_path / "tokenizer")}
        data = TextClassificationData(path=str(tmp_path), **common | changed)
        data.load()
        return data

    return make


def model_of(family, folder, data):
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(CONFIGURATIONS[family]).save_pretrained(folder)
    stages = StagesConfig(teacher=StageConfig(max_steps=1))
    config = RunConfig(model=ModelConfig(path=str(folder), pretrained=True), stages=stages)
    return build_model(config, data).eval()


@pytest.mark.parametrize("padding", ["longest", "max_length"])
@pytest.mark.parametrize("family", CONFIGURATIONS)
def test_a_row_is_answered_alone_as_beside_others(texts, tmp_path, family, padding):
    data = texts(side="left", padding=padding)
    observe = SignalCapture(model_of(family, tmp_path / "model", data))
    with torch.no_grad():
        (together,) = observe(data.example_batch(4))["logits"]
        for number, row in enumerate(data.validation_rows):
            batch = {name: torch.tensor([value]) for name, value in row.items()}
            (alone,) = observe(batch)["logits"]
            torch.testing.assert_close(together[number], alone[0], rtol=1e-4, atol=1e-5)
    assert data.example_batch(2)["attention_mask"][0, :2].tolist() == [1, 0]


def test_what_is_exported_pads_as_the_data_does(texts, tmp_path):
    texts(side="left").processor.save_pretrained(tmp_path / "exported")
    assert AutoTokenizer.from_pretrained(tmp_path / "exported").padding_side == "right"


def test_a_text_without_tokens_is_one_end_of_text_token(texts):
    data = texts(inputs=("input_ids", "token_type_ids", "attention_mask"))
    assert data.validation_rows[2]["input_ids"] == [WORDS.index("</s>")]
    assert data.validation_rows[2]["attention_mask"] == [1]
    assert data.validation_rows[2]["token_type_ids"] == [0]
    assert "1 rows of the train split have no tokens: they are read as '</s>' alone" in data.notes


def test_a_text_without_tokens_is_named_where_nothing_can_stand_for_it(texts):
    with pytest.raises(ValueError, match="row 2 of the train split has a text without tokens"):
        texts(eos=None)


@pytest.mark.parametrize(
    ("family", "changed", "message"),
    [
        # 16 positions, of which RoBERTa's padding token, 1, and all before it are none of a row's
        (
            "roberta",
            {"max_length": 15},
            "rows of 15 tokens are beyond the model's 14 positions: give data.max_length=14",
        ),
        ("roberta", {"max_length": 14}, None),
        ("bert", {"max_length": 17}, "beyond the model's 16 positions"),
        ("bert", {"max_length": 16}, None),
        ("llama", {"max_length": 17}, "beyond the model's 16 positions"),
    ],
)
def test_a_row_longer_than_the_models_positions_is_refused(texts, tmp_path, family, changed, message):
    data = texts(**changed)
    refused(data, model_of(family, tmp_path / "model", data), message)


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("roberta", {"token_type_ids": [0, 1]}, "token type 1, and the model knows 0 to 0"),
        ("bert", {"token_type_ids": [0, 1]}, None),
        ("bert", {"token_type_ids": [0, 2]}, "token type 2, and the model knows 0 to 1"),
        ("gpt2", {"token_type_ids": [0, 3]}, None),
        ("gpt2", {"input_ids": [4, 10]}, "the data holds token 10, and the model knows 0 to 9"),
    ],
)
def test_every_row_is_looked_at(texts, tmp_path, family, change, message):
    data = texts()
    data.validation_rows = [*data.validation_rows, data.validation_rows[0] | change]
    refused(data, model_of(family, tmp_path / "model", data), message)


def test_a_padding_token_beyond_the_vocabulary_is_refused(texts, tmp_path):
    data = texts()
    data.tokenizer.add_special_tokens({"pad_token": "<another>"})
    refused(
        data,
        model_of("bert", tmp_path / "model", data),
        "the data are padded with token 10, and the model knows 0 to 9",
    )


def refused(data, model, message):
    if message is None:
        check_tokens(data, model)
    else:
        with pytest.raises(ConfigError, match=message):
            check_tokens(data, model)
