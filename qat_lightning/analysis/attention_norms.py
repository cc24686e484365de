"""Norm-based attention (Kobayashi et al., Attention is Not Only a Weight, arXiv:2004.10102).

Head h adds Σ_j α_ij f(x_j) to the output of token i, with f(x_j) = W_O[:, h] (W_V[h] x_j + b_V[h]).

Shapes: B batch, H heads, N queries, M keys, D head width, E hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qat_lightning.models.capture import Batch
from qat_lightning.models.module_paths import site_paths

QUANTITIES = ("weight", "transformed", "weighted", "summed")


@dataclass(frozen=True)
class Norms:
    """weight: α (B, H, N, M) · transformed: ‖f(x)‖ (B, H, M) · weighted: ‖αf(x)‖ (B, H, N, M) · summed: ‖Σ_h αf(x)‖
    (B, N, M)."""

    weight: Tensor
    transformed: Tensor
    weighted: Tensor
    summed: Tensor


@torch.no_grad()
def projection_weights(model: nn.Module) -> list[Tensor]:
    """Return W_O of each layer (E, E), quantized if the model quantizes it.

    The released code of arXiv:2211.11014 uses the latent weight even of a ternary student.
    """
    weights = []
    for path in site_paths(model, "attention.projection"):
        module = model.get_submodule(path)
        quantizer = getattr(module, "weight_quantizer", None)
        weight: Tensor = module.weight  # type: ignore[assignment]
        weight = weight.t() if hasattr(module, "nf") else weight  # transformers' Conv1D keeps (inputs, outputs)
        weights.append((weight if quantizer is None else quantizer(weight)).detach())
    return weights


def transformed_values(value: Tensor, projection: Tensor, heads: int) -> Tensor:
    """Compute f(x) (B, H, M, E): each head's slice of the value (B, M, E) times its slice of W_O (E, E).

    Raises:
        ValueError: a value whose width is not that of W_O's input, or not a multiple of the heads.
    """
    width = value.shape[-1]
    if width != projection.shape[1] or width % heads:
        raise ValueError(f"width {width} for {heads} heads: heads that share keys and values cannot be taken apart")
    wide = torch.promote_types(value.dtype, torch.float32)
    each = value.detach().to(wide).unflatten(-1, (heads, width // heads))
    slices = projection.detach().to(value.device, wide).unflatten(-1, (heads, width // heads))
    return torch.einsum("bmhd,ehd->bhme", each, slices)


def norm_analysis(maps: Tensor, value: Tensor, projection: Tensor) -> Norms:
    """Compute α, ‖f(x)‖, ‖αf(x)‖ and ‖Σ_h αf(x)‖ of one layer.

    ‖Σ_h α_h f_h‖² = Σ_{g,h} α_g α_h ⟨f_g, f_h⟩, in float64: the sum of vectors would take B·N·M·E numbers.

    Args:
        maps, value: `attention.probs` (B, H, N, M), and `attention.value` (B, M, E), its bias included.
        projection: W_O (E, E), see `projection_weights`.
    """
    vectors = transformed_values(value, projection, maps.shape[1])
    weight = maps.detach().to(vectors)
    transformed = vectors.norm(dim=-1)
    products = torch.einsum("bgme,bhme->bghm", vectors.double(), vectors.double())
    alpha = weight.double()
    squares = (torch.einsum("bghm,bhnm->bgnm", products, alpha) * alpha).sum(1)
    summed = squares.clamp(min=0).sqrt().to(weight)
    return Norms(weight, transformed, weight * transformed.unsqueeze(2), summed)


def class_means(norms: Norms, classes: Mapping[str, Tensor], batch: Batch) -> dict[str, dict[str, Tensor]]:
    """Return quantity → class → mean over the keys of that class and all queries, for each head (H,); (1,) for `summed`.

    `classes` is class → its keys, boolean (B, M), see `token_classes`. A class without tokens in the batch is left out.
    """
    device = norms.weight.device
    mask = batch.get("attention_mask")
    queries = torch.ones(norms.weight.shape[::2]) if mask is None else mask
    queries = queries.to(device).double()
    measured = {
        "weight": (norms.weight, queries),
        "transformed": (norms.transformed.unsqueeze(2), torch.ones_like(queries[:, :1])),
        "weighted": (norms.weighted, queries),
        "summed": (norms.summed.unsqueeze(1), queries),
    }
    present = {name: where.to(device).double() for name, where in classes.items() if bool(where.any())}
    return {
        quantity: {name: _class_mean(values, keys, rows) for name, keys in present.items()}
        for quantity, (values, rows) in measured.items()
    }


def norm_differences(
    teacher: Sequence[Norms], student: Sequence[Norms], classes: Mapping[str, Tensor], batch: Batch
) -> dict[str, dict[str, Tensor]]:
    """Return quantity → class → |mean of the teacher − mean of the student| for each layer and head (L, H); `summed` (L, 1).

    Source: arXiv:2211.11014 Fig. 6. Raises ValueError for models of different depth.
    """
    if len(teacher) != len(student):
        raise ValueError(f"a teacher of {len(teacher)} layers and a student of {len(student)} cannot be compared")
    layers = [
        (class_means(other, classes, batch), class_means(own, classes, batch))
        for other, own in zip(teacher, student, strict=True)
    ]
    return {
        quantity: {
            name: torch.stack([(other[quantity][name] - own[quantity][name]).abs() for other, own in layers])
            for name in layers[0][0][quantity]
        }
        for quantity in QUANTITIES
    }


def _class_mean(values: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
    """Average values (B, H, N, M) over the keys (B, M) and queries (B, N) that count → (H,)."""
    counts = queries[:, None, :, None] * keys[:, None, None, :]
    return ((values.double() * counts).sum((0, 2, 3)) / counts.sum((0, 2, 3))).float()
