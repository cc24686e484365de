"""Pooling of hidden states: values by hand, its files, and the model that carries it."""

import copy
import math

import pytest
import torch

from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.sentence_pooling import MODULES, POOLING, SentencePooling, pooling_files, read_pooling

HIDDEN = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [9.0, 9.0]], [[2.0, 2.0], [4.0, 0.0], [0.0, 4.0]]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [("mean", [[2.0, 2.0], [2.0, 2.0]]), ("cls", [[1.0, 0.0], [2.0, 2.0]]), ("last", [[3.0, 4.0], [0.0, 4.0]])],
)
def test_pooling_ignores_padding(pooling, expected):
    assert SentencePooling(pooling, normalize=False)(HIDDEN, MASK).tolist() == expected
    lengths = [math.hypot(*row) for row in expected]
    unit = [[value / length for value in row] for row, length in zip(expected, lengths, strict=True)]
    assert torch.allclose(SentencePooling(pooling)(HIDDEN, MASK), torch.tensor(unit))


@pytest.fixture
def encoder():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertModel(BertConfig(vocab_size=30, **sizes)).eval()
    model.sentence_pooling = SentencePooling()
    return model


def test_capture_returns_the_embedding_as_logits(encoder):
    batch = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    (embedding,) = SignalCapture(copy.deepcopy(encoder))(batch)["logits"]
    hidden = encoder(**batch).last_hidden_state
    assert torch.allclose(embedding[1], hidden[1, :2].mean(0) / hidden[1, :2].mean(0).norm())
    assert embedding.shape == (2, 8)


@pytest.mark.parametrize("pooling", [SentencePooling(), SentencePooling("cls", False), SentencePooling("last")])
def test_files_give_the_pooling_back(encoder, pooling):
    encoder.sentence_pooling = pooling
    files = pooling_files(encoder)
    assert read_pooling(files[POOLING], files[MODULES]) == pooling
    assert files[POOLING]["word_embedding_dimension"] == 8


def test_other_poolings_are_refused():
    with pytest.raises(ValueError, match="choose one pooling"):
        read_pooling({"pooling_mode_max_tokens": True}, [])
    with pytest.raises(ValueError, match="choose mean, cls, last"):
        SentencePooling("max")  # type: ignore[arg-type]
