"""The blockwise attention-map loss in bytes: linear in the length, and no map from the batch to the gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qat_lightning.distillation.losses import attention_map as module
from qat_lightning.distillation.losses.attention_map import AttentionMapLoss
from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.convert import AttentionQuantization, open_attention_for, quantize
from qat_lightning.models.sites import FACTORS
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer
from tests.memory import Allocations, saved_bytes
from tests.tiny_models import HEADS, tiny_batch, tiny_model

B, H, G, D = 2, 4, 2, 8
FLOAT = 4


def drawn(tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(B, heads, tokens, D, generator=generator) for heads in (H, G))
    return query, key, torch.zeros(B, 1, 1, 1)


def measured(tokens: int, implementation: str) -> tuple[int, Allocations]:
    """Bytes saved for the backward pass, and what was made in both passes, of one layer."""
    own, other = drawn(tokens, 0), drawn(tokens, 1)
    query, key = (tensor.requires_grad_() for tensor in own[:2])
    loss = AttentionMapLoss(implementation=implementation)
    with Allocations() as made, saved_bytes() as saved:
        if implementation == "dense":
            pair = [
                {"attention.probs": [(q @ k.repeat_interleave(H // G, 1).mT + m).softmax(-1)]}
                for q, k, m in (own, other)
            ]
        else:
            pair = [{site: [tensor] for site, tensor in zip(FACTORS, each, strict=True)} for each in (own, other)]
        loss(*pair, {}).backward()
    assert query.grad is not None
    assert key.grad is not None
    return sum(saved), made


@pytest.mark.parametrize("tokens", [32, 64, 256])
def test_saved_are_two_gradients_and_nothing_else(tokens: int) -> None:
    saved, _ = measured(tokens, "blockwise")
    assert saved == FLOAT * B * tokens * D * (H + G)


def test_memory_is_linear_in_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one row of each head: every tensor that is made has a size proportional to the length, or none at all."""
    monkeypatch.setattr(module, "ELEMENTS", 1)
    peaks = {tokens: measured(tokens, "blockwise")[1].peak for tokens in (8, 16, 32)}
    slopes = [(peaks[16] - peaks[8]) / 8, (peaks[32] - peaks[16]) / 16]
    assert slopes[0] == slopes[1]
    dense = {tokens: measured(tokens, "dense")[1].peak for tokens in (128, 256)}
    assert dense[256] > 3.5 * dense[128]


@pytest.mark.parametrize("elements", [1, 3 * B * H * 128, 2**13])
def test_no_tensor_is_as_large_as_a_map_of_one_head(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ELEMENTS", elements)
    _, made = measured(128, "blockwise")
    assert made.largest <= max(elements, B * H * 128 * D) < 128**2
    assert measured(128, "dense")[1].largest == B * H * 128**2


def whole(name: str, implementation: str, tokens: int, operands: AttentionQuantization | None = None) -> Allocations:
    """Teacher, student, loss and gradient."""
    loss = AttentionMapLoss(implementation=implementation)
    student, teacher = (tiny_model(name, seed=seed, max_position_embeddings=tokens) for seed in (0, 1))
    student = open_attention_for(quantize(student, [], operands), loss.sites)
    open_attention_for(teacher, loss.sites)
    batch = tiny_batch(name, lengths=(tokens, tokens - 9))
    with Allocations() as made:
        with torch.no_grad():
            taught = SignalCapture(teacher, loss.sites)(batch)
        loss(SignalCapture(student, loss.sites)(batch), taught, batch).backward()
    return made


def test_no_map_from_the_batch_to_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two samples, padded; a student with 8-bit queries, keys and values. With 8-bit maps it needs them itself."""
    monkeypatch.setattr(module, "ELEMENTS", 2**13)
    tokens, eight = 128, UniformQuantizer
    assert whole("bert", "blockwise", tokens).largest < tokens**2
    assert (
        whole("bert", "blockwise", tokens, AttentionQuantization(query=eight, key=eight, value=eight)).largest
        < tokens**2
    )
    assert whole("bert", "blockwise", tokens, AttentionQuantization(probs=eight)).largest == 2 * HEADS * tokens**2
    assert whole("bert", "dense", tokens).largest == 2 * HEADS * tokens**2


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_decoder_makes_its_mask_and_no_map(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A causal mask with padding is (B, 1, N, M), the same for all heads and layers: transformers makes it."""
    monkeypatch.setattr(module, "ELEMENTS", 2**13)
    assert whole(name, "blockwise", 128).largest == 2 * 128**2
    assert whole(name, "dense", 128).largest == 2 * HEADS * 128**2
