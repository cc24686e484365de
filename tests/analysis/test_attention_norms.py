"""Kobayashi's norms against loops over queries, keys and heads, and against what the models themselves compute."""

import copy

import pytest
import torch

from qat_lightning.analysis.attention_norms import (
    QUANTITIES,
    class_means,
    norm_analysis,
    norm_differences,
    projection_weights,
    transformed_values,
)
from qat_lightning.analysis.token_masks import token_classes
from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.convert import QuantizationRule, open_attention, quantize
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer
from tests.tiny_models import HEADS, LAYERS, WIDTH, pad_batch, tiny_batch, tiny_model

SITES = ["attention.probs", "attention.value", "attention.projection"]


def ternary(model: torch.nn.Module) -> torch.nn.Module:
    return quantize(copy.deepcopy(model), [QuantizationRule("layers.*", weight=TernaryQuantizer)])


def biases(model: torch.nn.Module) -> list[torch.Tensor]:
    from qat_lightning.models.module_paths import site_paths

    return [model.get_submodule(path).bias for path in site_paths(model, "attention.projection")]


@torch.no_grad()
@pytest.mark.parametrize("quantized", [False, True], ids=["teacher", "ternary"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "vit"])
def test_the_parts_add_up_to_the_projection(family: str, quantized: bool) -> None:
    model = open_attention(tiny_model(family))
    model = ternary(model) if quantized else model
    signals = SignalCapture(model, SITES)(tiny_batch(family))
    layers = zip(*(signals[site] for site in SITES), projection_weights(model), biases(model), strict=True)
    for maps, value, projection, weight, bias in layers:
        parts = transformed_values(value, weight, maps.shape[1])
        assert parts.shape == (*maps.shape[:2], maps.shape[3], WIDTH)
        assert torch.allclose(torch.einsum("bhnm,bhme->bne", maps, parts), projection - bias, atol=1e-4)


@torch.no_grad()
def test_norms_match_loops() -> None:
    torch.manual_seed(3)
    maps, value, projection = torch.rand(2, 3, 4, 4), torch.randn(2, 4, 6), torch.randn(6, 6)
    norms = norm_analysis(maps, value, projection)
    for sample in range(2):
        for key in range(4):
            vectors = []
            for head in range(3):
                own = slice(2 * head, 2 * head + 2)
                vectors.append(projection[:, own] @ value[sample, key, own])
                assert norms.transformed[sample, head, key].item() == pytest.approx(
                    vectors[head].norm().item(), rel=1e-5
                )
            for query in range(4):
                alphas = maps[sample, :, query, key]
                scaled = [alpha * vector for alpha, vector in zip(alphas, vectors, strict=True)]
                assert norms.weighted[sample, :, query, key].tolist() == [
                    pytest.approx(one.norm().item(), rel=1e-5) for one in scaled
                ]
                assert norms.summed[sample, query, key].item() == pytest.approx(sum(scaled).norm().item(), rel=1e-5)
    assert torch.equal(norms.weight, maps)


def test_the_weight_is_the_one_that_acts() -> None:
    model = tiny_model("bert")
    full, acting = projection_weights(model), projection_weights(ternary(model))
    assert len(full) == len(acting) == LAYERS
    assert all(len(weight.unique()) > 3 for weight in full)
    assert all(len(weight.unique()) == 3 and not weight.requires_grad for weight in acting)


def measured(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> list:
    signals = SignalCapture(model, SITES)(batch)
    return [
        norm_analysis(*layer)
        for layer in zip(signals["attention.probs"], signals["attention.value"], projection_weights(model), strict=True)
    ]


@torch.no_grad()
def test_differences_by_class_are_those_of_the_loops_and_ignore_padding() -> None:
    teacher, batch = open_attention(tiny_model("bert")), tiny_batch("bert")
    batch["input_ids"][:, 0] = 2
    student = ternary(teacher)
    found = []
    for given in (batch, pad_batch(batch, 3)):
        classes = token_classes(given, {"first": [2], "absent": [99]})
        found.append(norm_differences(measured(teacher, given), measured(student, given), classes, given))
    for quantity in QUANTITIES:
        assert list(found[0][quantity]) == ["first", "other", "all"]
        for name, values in found[0][quantity].items():
            assert values.shape == (LAYERS, 1 if quantity == "summed" else HEADS)
            assert torch.allclose(values, found[1][quantity][name], rtol=1e-3, atol=1e-5)
    classes = token_classes(batch, {"first": [2]})
    pair = [norms[0] for norms in (measured(teacher, batch), measured(student, batch))]
    means = []
    for norms in pair:
        mask, where = batch["attention_mask"].bool(), classes["other"]
        picked = [
            norms.weighted[b, 1, i, j].item()
            for b in range(len(mask)) for i in range(9) for j in range(9) if mask[b, i] and where[b, j]
        ]  # fmt: skip
        means.append(sum(picked) / len(picked))
    assert found[0]["weighted"]["other"][0, 1].item() == pytest.approx(abs(means[0] - means[1]), rel=1e-3)
    transformed = class_means(pair[0], classes, batch)["transformed"]["all"]
    expected = torch.stack([pair[0].transformed[b, :, j] for b, j in torch.nonzero(batch["attention_mask"])]).mean(0)
    assert torch.allclose(transformed, expected, rtol=1e-5)


def test_shared_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="heads that share keys and values cannot be taken apart"):
        norm_analysis(torch.rand(1, 4, 2, 2), torch.rand(1, 2, 4), torch.rand(8, 8))
