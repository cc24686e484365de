"""Texts for a language model: packed or each alone, what follows each token, and what is refused."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.text import Perplexity
from transformers import BertTokenizerFast, LlamaConfig, LlamaForCausalLM

from qat_lightning.config.instantiate import create
from qat_lightning.data.language_modeling import LanguageModelingData
from tests.data.conftest import MODEL_MAX_LENGTH, WORDS
from tests.training.runs import resolved

ROWS = ["the cat sat", "a dog ran", "", "the film is not very good"]


def tokens(words):
    return [WORDS.index(word) for word in words.split()]


def save_tokenizer(folder, **special):
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    BertTokenizerFast(vocab=vocabulary, model_max_length=MODEL_MAX_LENGTH, **special).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def ending(tmp_path_factory):
    """A tokenizer that has an end-of-text token, [SEP], and none for padding."""
    return save_tokenizer(tmp_path_factory.mktemp("ending"), eos_token="[SEP]", pad_token=None)


@pytest.fixture
def write(tmp_path):
    def both(train, validation=None):
        for split, texts in (("train", train), ("validation", train if validation is None else validation)):
            lines = (json.dumps({"text": text}) for text in texts)
            (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")

    return both


def made(path, tokenizer, **changed):
    arguments = {"path": str(path), "tokenizer": tokenizer, "max_length": 4, "batch_size": 2}
    metrics = {"metrics": {"perplexity": Perplexity(ignore_index=-100)}, "metric": "perplexity"}
    return LanguageModelingData(**(arguments | metrics | changed))


@pytest.fixture
def language(tokenizer, tmp_path):
    return lambda **changed: made(tmp_path, **{"tokenizer": tokenizer} | changed)


def perplexity(data, logits, batches):
    for scores, batch in zip(logits, batches, strict=True):
        data.metrics["perplexity"].update(*data.predict([scores], batch))
    return float(data.metrics["perplexity"].compute())


def test_packed_texts_are_one_stream_and_labels_the_tokens_that_follow(language, write, ending):
    """the cat sat [SEP] a dog ran [SEP] the film is not very good [SEP]: 15 tokens, 14 of which are followed."""
    write(ROWS)
    batch = language(tokenizer=ending).example_batch(9)
    assert batch["input_ids"].tolist() == [
        tokens("the cat sat [SEP]"), tokens("a dog ran [SEP]"), tokens("the film is not"), tokens("very good [PAD] [PAD]"),
    ]  # fmt: skip
    assert batch["labels"].tolist() == [
        tokens("cat sat [SEP] a"), tokens("dog ran [SEP] the"), tokens("film is not very"), [*tokens("good [SEP]"), -100, -100],
    ]  # fmt: skip
    assert batch["attention_mask"].tolist() == [[1] * 4] * 3 + [[1, 1, 0, 0]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_a_separator_joins_the_texts_in_place_of_the_end_of_text_token(language, write, ending):
    write(ROWS)
    batch = language(tokenizer=ending, separator=" very ", max_length=16).example_batch(1)
    assert batch["input_ids"].tolist() == [tokens("the cat sat very a dog ran very very the film is not very")]
    assert batch["labels"][0, -1] == WORDS.index("good")


@given(
    texts=st.lists(st.lists(st.sampled_from(WORDS[5:]), max_size=9), min_size=1, max_size=6).filter(
        lambda t: sum(map(len, t))
    ),
    length=st.integers(1, 7),
)
def test_each_token_of_the_stream_but_the_first_is_predicted_once(tmp_path_factory, ending, texts, length):
    folder = tmp_path_factory.mktemp("stream")
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps({"text": " ".join(text)}) for text in texts))
    stream = [WORDS.index(word) for text in texts if text for word in [*text, "[SEP]"]]
    rows = made(folder, ending, max_length=length).read()[0]
    assert [len(row["input_ids"]) for row in rows[:-1]] == [length] * (math.ceil((len(stream) - 1) / length) - 1)
    assert [token for row in rows for token in row["input_ids"].tolist()] == stream[:-1]
    assert [token for row in rows for token in row["labels"].tolist()] == stream[1:]


def test_texts_alone_are_cut_and_padded(language, write):
    write(["the cat sat", "", "the film is not very good"])
    batch = language(packing=False, max_length=6).example_batch(9)
    assert batch["input_ids"].tolist() == [
        tokens("[CLS] the cat sat [PAD]"), tokens("[CLS] [PAD] [PAD] [PAD] [PAD]"), tokens("[CLS] the film is not"),
    ]  # fmt: skip
    assert batch["labels"].tolist() == [
        [*tokens("the cat sat [SEP]"), -100], [*tokens("[SEP]"), *[-100] * 4], tokens("the film is not [SEP]"),
    ]  # fmt: skip
    assert batch["attention_mask"].sum(1).tolist() == [4, 1, 5]


def test_labels_equal_those_that_transformers_shifts(language, write):
    """Its own loss on the same text, against the mean of −log p of our labels; the last label is the model's as well."""
    write(["the film is not very good"])
    data = language(packing=False, max_length=9)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), **sizes)).eval()
    batch = data.example_batch(1)
    whole = torch.cat([batch["input_ids"], batch["labels"][:, -1:]], 1)
    logits = model(batch["input_ids"]).logits.detach()
    loss = model(whole, labels=whole).loss.item()
    assert perplexity(data, [logits], [batch]) == pytest.approx(math.exp(loss), rel=1e-4)


@pytest.mark.parametrize("changed", [{"packing": False}, {"separator": " very "}, {"max_length": 5}])
def test_fingerprint_changes_with_the_encoding(language, write, changed):
    write(ROWS)
    before = language().fingerprint()
    assert language().fingerprint() == before
    assert language(**changed).fingerprint() != before


@pytest.mark.parametrize(
    ("rows", "changed", "words"),
    [
        (ROWS, {"text_column": "q"}, r"no column 'q' .*text_column=…"),
        ([3], {}, r"column 'text' of the train split contains 3.*text_column=…"),
        (["the"], {}, r"the train split of .* is empty"),
        (ROWS, {"max_length": 1, "packing": False}, r"max_length=1 leaves no token"),
        (ROWS, {"group_by_length": True}, r"group_by_length=true.*packing=false"),
    ],
)
def test_errors_name_the_argument(language, write, rows, changed, words):
    write(rows)
    with pytest.raises(ValueError, match=words):
        language(**changed).load()


def test_packed_texts_need_no_padding_token(language, write, ending):
    write(ROWS)
    with pytest.raises(ValueError, match=r"has no padding token"):
        language(tokenizer=ending, packing=False).load()
    language(tokenizer=ending).load()


@pytest.mark.parametrize("choice", ["language", "wikitext2"])
def test_configuration_reads_a_local_folder(choice, write, tokenizer, tmp_path):
    write(ROWS)
    places = (f"data.path={tmp_path}", f"model.path={tokenizer}", "data.max_length=16")
    config = resolved(f"data={choice}", *places).data
    assert (config["packing"], config["metric"]) == (True, "perplexity")
    if choice == "wikitext2":
        assert (config["name"], config["separator"]) == ("wikitext-2-raw-v1", "\n\n")
    data = create(config, "data")
    batch = data.example_batch(1)
    uniform = torch.zeros(*batch["labels"].shape, len(WORDS))
    assert perplexity(data, [uniform], [batch]) == pytest.approx(len(WORDS))
