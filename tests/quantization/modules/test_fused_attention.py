"""A lean core makes no map that nobody needs; what it computes is what the core computes without."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import bidirectional_mask_function, eager_mask, sliding_window_causal_mask_function

from qat_lightning.distillation.intervention import Intervention
from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.convert import AttentionQuantization, open_attention, open_attention_for, quantize
from qat_lightning.models.sites import FACTORS
from qat_lightning.quantization.modules.attention import InstrumentedAttention
from qat_lightning.quantization.modules.fused_attention import additive_mask, fused_attention
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer
from tests.memory import Allocations
from tests.tiny_models import DECODERS, FAMILIES, HEADS, LENGTHS, tiny_batch, tiny_model, without_labels


def cores(model: PreTrainedModel) -> list[InstrumentedAttention]:
    return [module for module in model.modules() if isinstance(module, InstrumentedAttention)]


def lean(model: PreTrainedModel) -> PreTrainedModel:
    return open_attention_for(copy.deepcopy(model), ["attention.context"])


def maps_made(model: PreTrainedModel, batch: dict[str, Tensor]) -> int:
    """How often a softmax over (B, H, N, M) was taken, whose operator tells it."""
    made: list[Any] = []

    class Softmaxes(Allocations):
        def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
            result = super().__torch_dispatch__(operation, types, arguments, keywords)
            if "softmax" in str(operation) and result.dim() == 4:
                made.append(result.shape)
            return result

    with Softmaxes(), torch.no_grad():
        model(**without_labels(batch))
    return len(made)


@pytest.mark.parametrize("name", FAMILIES + DECODERS)
def test_a_lean_core_computes_the_same(name: str) -> None:
    """Logits and gradients, in float64; grouped keys, padding, causality and windows among the families."""
    opened, batch = open_attention(tiny_model(name)).double(), tiny_batch(name)
    batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    results = []
    for model in (opened, lean(opened)):
        logits = SignalCapture(model)(batch)["logits"][0]
        if "attention_mask" in batch and logits.dim() == 3:
            logits = logits[batch["attention_mask"].bool()]
        logits.square().sum().backward()
        results.append((logits, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-9, atol=1e-9 * float(results[0][1].abs().max()))


def test_a_map_is_made_only_where_it_is_needed() -> None:
    model, batch = tiny_model("bert"), tiny_batch("bert")
    layers = len(cores(open_attention(copy.deepcopy(model))))
    assert layers == 2
    assert maps_made(open_attention(copy.deepcopy(model)), batch) == layers
    assert maps_made(lean(model), batch) == 0
    assert maps_made(open_attention_for(copy.deepcopy(model), FACTORS), batch) == 0
    for site in ("attention.scores", "attention.probs"):
        assert maps_made(open_attention_for(copy.deepcopy(model), [*FACTORS, site]), batch) == layers
    operands = AttentionQuantization(*[UniformQuantizer] * 4)
    assert maps_made(open_attention_for(quantize(copy.deepcopy(model), [], operands), FACTORS), batch) == layers
    others = AttentionQuantization(query=UniformQuantizer, key=UniformQuantizer, value=UniformQuantizer)
    assert maps_made(open_attention_for(quantize(copy.deepcopy(model), [], others), FACTORS), batch) == 0


@pytest.mark.parametrize("site", ["attention.scores", "attention.probs"])
def test_a_captured_or_replaced_map_is_made_by_a_lean_core_too(site: str) -> None:
    opened, batch = open_attention(tiny_model("bert")), tiny_batch("bert")
    model, other = lean(opened), open_attention(tiny_model("bert", seed=1))
    seen, expected = (SignalCapture(each, [site])(batch) for each in (model, opened))
    assert all(torch.equal(*pair) for pair in zip(seen[site], expected[site], strict=True))
    assert torch.equal(seen["logits"][0], expected["logits"][0])
    teacher = SignalCapture(other, [site])(batch)
    replaced = []
    for each in (model, opened):
        with Intervention([site]).apply(each, teacher):
            replaced.append(SignalCapture(each)(batch)["logits"][0])
    assert torch.equal(*replaced)
    assert not torch.equal(replaced[0], expected["logits"][0])
    assert SignalCapture(model, ["attention.context"])(batch)["attention.context"][0].shape[1] == HEADS


@pytest.mark.parametrize("name", ["bert", "mistral"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_makes_no_nan_of_a_row_without_keys(name: str, dtype: torch.dtype) -> None:
    model, batch = tiny_model(name, **({"sliding_window": 3} if name == "mistral" else {})), tiny_batch(name)
    with torch.no_grad():
        exact = SignalCapture(open_attention(copy.deepcopy(model)))(batch)["logits"][0]
        with torch.autocast("cpu", dtype):
            mixed = SignalCapture(lean(model))(batch)["logits"][0]
        narrow = SignalCapture(lean(model).to(dtype))(batch)["logits"][0]
    for logits in (mixed, narrow):
        assert logits.isfinite().all()
        torch.testing.assert_close(logits.float()[0], exact[0], rtol=0.1, atol=0.1 * float(exact[0].abs().max()))


def test_dropout_is_that_of_training() -> None:
    core = InstrumentedAttention()
    core.lean = True
    query, key, value = (torch.randn(1, 2, 40, 4) for _ in range(3))
    first, second = (core(query, key, value, None, 0.5, 0.5)[0] for _ in range(2))
    assert not torch.equal(first, second)
    kept = [core.eval()(query, key, value, None, 0.5, 0.5)[0] for _ in range(2)]
    assert torch.equal(*kept)
    torch.testing.assert_close(kept[0], fused_attention(query, key, value, None, 0.5, 0.0).transpose(1, 2))


def test_mask_of_padding_has_one_row() -> None:
    given = {"batch_size": 3, "q_length": 9, "kv_length": 9, "device": "cpu"}
    padded = given | {"attention_mask": tiny_batch("bert")["attention_mask"].bool()}
    both = padded | {"mask_function": bidirectional_mask_function}
    mask = additive_mask(**both)
    assert mask.shape == (3, 1, 1, 9)
    assert torch.equal(mask.expand(3, 1, 9, 9), eager_mask(**both))
    assert additive_mask(**both, allow_is_bidirectional_skip=True) is not None
    whole = both | {"attention_mask": torch.ones(3, 9).bool(), "allow_is_bidirectional_skip": True}
    assert additive_mask(**whole) is eager_mask(**whole) is None
    causal = additive_mask(**padded)
    assert causal.shape == (3, 1, 9, 9)
    assert torch.equal(causal, eager_mask(**padded))
    window = padded | {"mask_function": sliding_window_causal_mask_function(3), "dtype": torch.float16}
    assert torch.equal(additive_mask(**window), eager_mask(**window))
    assert additive_mask(**window).dtype == torch.float16


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("name", FAMILIES + DECODERS)
def test_scores_are_made_of_their_factors(name: str, quantized: bool) -> None:
    """After quantization and rotation, for each family."""
    operands = AttentionQuantization(query=UniformQuantizer, key=UniformQuantizer) if quantized else None
    model = open_attention(quantize(tiny_model(name), [], operands))
    with torch.no_grad():
        signals = SignalCapture(model, [*FACTORS, "attention.scores"])(tiny_batch(name))
    layers = zip(*(signals[site] for site in FACTORS), signals["attention.scores"], strict=True)
    for query, key, mask, scores in layers:
        keys = key.repeat_interleave(HEADS // key.shape[1], dim=1)
        torch.testing.assert_close(query @ keys.mT + mask, scores, rtol=1e-5, atol=1e-5)
        assert len(mask) == len(LENGTHS)
        if quantized:
            assert len(key.unique()) <= 255


def test_gradient_flows_through_the_factors_as_through_scores() -> None:
    operands = AttentionQuantization(query=UniformQuantizer, key=UniformQuantizer)
    gradients = []
    for sites in (FACTORS, ["attention.scores"]):
        model = open_attention(quantize(tiny_model("bert"), [], operands))
        signals = SignalCapture(model, sites)(tiny_batch("bert"))
        scores = signals.get("attention.scores") or [
            q @ k.mT + m for q, k, m in zip(*(signals[site] for site in FACTORS), strict=True)
        ]
        torch.stack([layer.clamp(min=-50).square().sum() for layer in scores]).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5 * float(gradients[0].abs().max()))
    assert gradients[0].any()
