"""Map divergence, column mass and attention distance against naive loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat_lightning.analysis.attention_maps import attention_distance, column_mass, describe_maps, map_divergence
from qat_lightning.analysis.token_masks import class_ids, first_token, token_classes
from qat_lightning.distillation.losses.attention_map import AttentionMapLoss
from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.convert import open_attention
from tests.analysis.test_attention_ranking import naive, random_maps, random_mask
from tests.tiny_models import pad_batch, tiny_batch, tiny_model


def naive_divergence(student: list[list[float]], teacher: list[list[float]]) -> float:
    pairs = [pair for rows in zip(student, teacher, strict=True) for pair in zip(*rows, strict=True)]
    terms = [max(p, 1e-8) * math.log(max(p, 1e-8) / max(q, 1e-8)) for q, p in pairs]
    return sum(terms) / len(student)


def naive_distance(own: list[list[float]], _: object) -> float:
    return sum(p * abs(i - j) for i, row in enumerate(own) for j, p in enumerate(row)) / len(own)


def naive_mass(own: list[list[float]], _: object, column: int) -> float:
    return sum(row[column] for row in own) / len(own)


@given(st.integers(0, 10_000), st.integers(1, 9), st.sampled_from(["left", "right"]))
def test_measures_match_loops(seed: int, length: int, side: str) -> None:
    student, teacher = random_maps(seed, length), random_maps(seed + 1, length)
    student[:, :, :, 0] = 0.0  # to be clamped
    mask = random_mask(seed, length, side)
    batch = {"attention_mask": mask}
    expected = torch.tensor(naive(naive_divergence, student, teacher, mask))
    assert torch.allclose(map_divergence(student, teacher, batch), expected, rtol=1e-4, atol=1e-5)
    distance = torch.tensor(naive(naive_distance, student, teacher, mask))
    assert torch.allclose(attention_distance(student, batch), distance, atol=1e-5)
    first = torch.tensor(naive(naive_mass, teacher, teacher, mask, 0))
    assert torch.allclose(column_mass(teacher, first_token(mask.bool()), batch), first, atol=1e-6)


def test_divergence_is_the_attention_map_loss_of_each_layer() -> None:
    student, teacher = ({"attention.probs": [random_maps(seed, 7)]} for seed in (0, 1))
    batch = {"attention_mask": random_mask(2, 7, "right")}
    loss = AttentionMapLoss()(student, teacher, batch)
    mean = map_divergence(student["attention.probs"][0], teacher["attention.probs"][0], batch).mean()
    assert mean.item() == pytest.approx(loss.item(), rel=1e-5)


@torch.no_grad()
def test_more_padding_changes_nothing() -> None:
    model, batch = open_attention(tiny_model("bert")), tiny_batch("bert")
    described = [
        describe_maps(SignalCapture(model, ["attention.probs"])(given), given) for given in (batch, pad_batch(batch, 5))
    ]
    assert described[0] == {name: pytest.approx(line, rel=1e-4) for name, line in described[1].items()}
    assert min(described[0]["cls_mass"]) > 0


def test_tokens_have_classes() -> None:
    names = ["[CLS]", "it", ",", "Ġ.", "▁is", "[SEP]", "</s>", "[PAD]"]
    ids = class_ids(names, range(8))
    assert ids == {"[CLS]": [0], "[SEP]": [5, 6], "punctuation": [2, 3]}
    batch = {
        "input_ids": torch.tensor([[0, 1, 2, 5], [0, 5, 7, 5]]),
        "attention_mask": torch.tensor([[1] * 4, [1, 1, 0, 0]]),
    }
    classes = {name: where.int().tolist() for name, where in token_classes(batch, ids).items()}
    assert classes == {
        "[CLS]": [[1, 0, 0, 0], [1, 0, 0, 0]],
        "[SEP]": [[0, 0, 0, 1], [0, 1, 0, 0]],
        "punctuation": [[0, 0, 1, 0], [0, 0, 0, 0]],
        "other": [[0, 1, 0, 0], [0, 0, 0, 0]],
        "all": [[1, 1, 1, 1], [1, 1, 0, 0]],
    }
    with pytest.raises(ValueError, match="8 names of tokens for 2 ids"):
        class_ids(names, [0, 1])
    with pytest.raises(ValueError, match="no input_ids"):
        token_classes({"pixel_values": torch.zeros(1)}, ids)
