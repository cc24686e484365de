"""The papers' method written out densely, in float64, from their formulas alone. Imports nothing of qat_lightning.

Sources: quantizers and what is quantized, arXiv:2009.12812 §3.1-3.2 and its released code; losses, the same §3.3 and
arXiv:2211.11014 §4; Teacher Intervention, arXiv:2302.11812 §3 and its released code.
Slow on purpose: loops where a formula speaks of groups, no shared intermediate results.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

CLIP = 2.5
MASK = -10000.0
LAYER_NORM_EPSILON = 1e-12

Signals = dict[str, list[Tensor]]


@dataclass
class Margin:
    """How far the nearest value of a run is from a decision (rounding, threshold, clip), in units of that decision.

    A float32 run takes the same decisions as this float64 one only when all margins exceed its rounding errors.
    """

    rounding: float = float("inf")
    threshold: float = float("inf")
    clip: float = float("inf")

    def see(self, name: str, distances: Tensor) -> None:
        setattr(self, name, min(getattr(self, name), float(distances.detach().abs().min())))


@dataclass
class Run:
    """One forward pass: the signals by the site's name, and the margins of its decisions."""

    signals: Signals = field(default_factory=dict)
    margin: Margin = field(default_factory=Margin)


def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """Forward `quantized`; ∂/∂x = 1 where −c < x < c and 0 elsewhere, the boundary included."""
    inside = ((x > -CLIP) & (x < CLIP)).to(x.dtype)
    return quantized.detach() + (x - x.detach()) * inside


def ternary_group(weights: Tensor, margin: Margin) -> Tensor:
    """Δ = 0.7·mean|w|; α = mean of |w| over |w| > Δ; α·sign(w) where |w| > Δ, else 0. A group without any is zeros."""
    weights = weights.clamp(-CLIP, CLIP)
    delta = 0.7 * weights.abs().mean()
    kept = weights.abs() > delta
    if not kept.any():
        return torch.zeros_like(weights)
    margin.see("threshold", weights.abs() / delta - 1)
    alpha = weights.abs()[kept].mean()
    return torch.where(kept, alpha * weights.sign(), 0.0)


def ternary(weights: Tensor, by_row: bool = False, margin: Margin | None = None) -> Tensor:
    margin = margin or Margin()
    values = weights.detach()
    groups = [ternary_group(row, margin) for row in values] if by_row else [ternary_group(values, margin)]
    margin.see("clip", values.abs() - CLIP)
    return straight_through(weights, torch.stack(groups) if by_row else groups[0])


def symmetric_8_bit(x: Tensor, margin: Margin | None = None) -> Tensor:
    """m = max|x| of the clamped tensor, s = 127/m, x̂ = round(x·s)/s. Zeros stay zeros."""
    margin = margin or Margin()
    clamped = x.detach().clamp(-CLIP, CLIP)
    largest = clamped.abs().max()
    if largest == 0:
        return straight_through(x, torch.zeros_like(x))
    scale = 127 / largest
    scaled = clamped * scale
    margin.see("rounding", (scaled - scaled.floor()) - 0.5)
    margin.see("clip", x.abs() - CLIP)
    return straight_through(x, scaled.round() / scale)


def quantized_linear(state: dict[str, Tensor], name: str, x: Tensor, quantized: bool, margin: Margin) -> Tensor:
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    if quantized:
        return symmetric_8_bit(x, margin) @ ternary(weight, margin=margin).T + bias
    return x @ weight.T + bias


def layer_norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / (variance + LAYER_NORM_EPSILON).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, E) → (B, H, N, D)"""
    batch, tokens, width = x.shape
    return x.reshape(batch, tokens, heads, width // heads).permute(0, 2, 1, 3)


def forward(
    state: dict[str, Tensor],
    batch: dict[str, Tensor],
    heads: int,
    padding_index: int,
    quantized: bool,
    mode: str | None = None,
    teacher: Signals | None = None,
) -> Run:
    """BERT for sequence classification without dropout, W2A8 when `quantized`; `mode` is None, "O", "C" or "M".

    The signals are the student's own, also at the place where the teacher's goes on in its stead.
    """
    run = Run({site: [] for site in ("hidden", "scores", "probs", "context", "projection", "output", "logits")})
    eight_bit = (lambda x: symmetric_8_bit(x, run.margin)) if quantized else (lambda x: x)

    def linear(name: str, x: Tensor) -> Tensor:
        return quantized_linear(state, name, x, quantized, run.margin)

    def given(site: str, layer: int, own: Tensor, here: bool) -> Tensor:
        run.signals[site].append(own)
        return teacher[site][layer].detach() if here else own

    word = state["bert.embeddings.word_embeddings.weight"]
    table = ternary(word, by_row=True, margin=run.margin) if quantized else word
    x = functional.embedding(batch["input_ids"], table, padding_index)
    x = x + state["bert.embeddings.position_embeddings.weight"][: x.shape[1]]
    x = x + state["bert.embeddings.token_type_embeddings.weight"][0]
    x = layer_norm(state, "bert.embeddings.LayerNorm", x)
    run.signals["hidden"].append(x)

    masked_keys = (1.0 - batch["attention_mask"].to(x.dtype))[:, None, None, :] * MASK
    layers = 1 + max(int(name.split(".")[3]) for name in state if name.startswith("bert.encoder.layer."))
    for layer in range(layers):
        name = f"bert.encoder.layer.{layer}"
        # The table of the Intervention points: O and C stop the gradient into Q, K and V; M into Q and K only.
        into_query_and_key = x.detach() if mode in ("O", "C", "M") else x
        into_value = x.detach() if mode in ("O", "C") else x
        query = split_heads(linear(f"{name}.attention.self.query", into_query_and_key), heads)
        key = split_heads(linear(f"{name}.attention.self.key", into_query_and_key), heads)
        value = split_heads(linear(f"{name}.attention.self.value", into_value), heads)

        scores = eight_bit(query) @ eight_bit(key).transpose(-1, -2) / query.shape[-1] ** 0.5 + masked_keys
        run.signals["scores"].append(scores)
        probs = given("probs", layer, torch.softmax(scores, -1), mode == "M")
        context = given("context", layer, eight_bit(probs) @ eight_bit(value), mode == "C")
        merged = context.permute(0, 2, 1, 3).reshape(x.shape)
        projection = given("projection", layer, linear(f"{name}.attention.output.dense", merged), mode == "O")
        output = layer_norm(state, f"{name}.attention.output.LayerNorm", projection + x)
        run.signals["output"].append(output)

        inner = functional.gelu(linear(f"{name}.intermediate.dense", output))
        x = layer_norm(state, f"{name}.output.LayerNorm", linear(f"{name}.output.dense", inner) + output)
        run.signals["hidden"].append(x)

    pooled = torch.tanh(linear("bert.pooler.dense", x[:, 0]))
    run.signals["logits"].append(pooled @ state["classifier.weight"].T + state["classifier.bias"])
    return run


def prediction_loss(student: Signals, teacher: Signals, over_classes: str = "sum") -> Tensor:
    """−Σ_c p_T log p_S; the mean over the batch of the sum, or of the mean, over classes."""
    teacher_probs = torch.softmax(teacher["logits"][0].detach(), -1)
    terms = -teacher_probs * torch.log(torch.softmax(student["logits"][0], -1))
    return terms.sum(-1).mean() if over_classes == "sum" else terms.mean()


def layer_loss(student: Signals, teacher: Signals, site: str) -> Tensor:
    """Σ_l MSE over all elements, padding included."""
    pairs = zip(student[site], teacher[site], strict=True)
    return sum((own - other.detach()).square().sum() / own.numel() for own, other in pairs)


def score_loss(student: Signals, teacher: Signals) -> Tensor:
    """Σ_l MSE of scores in which what is ≤ −100 was set to 0 on both sides; all entries count in the denominator."""
    total = torch.zeros((), dtype=torch.float64)
    for own, other in zip(student["scores"], teacher["scores"], strict=True):
        own, other = own.masked_fill(own <= -100, 0.0), other.detach().masked_fill(other <= -100, 0.0)
        total = total + (own - other).square().sum() / own.numel()
    return total
