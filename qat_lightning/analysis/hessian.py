"""The largest eigenvalues of a loss's Hessian by Hessian-vector products, without the matrix."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from qat_lightning.models.capture import Batch

Product = Callable[[np.ndarray], np.ndarray]
NORM_WEIGHT = 0.01
"""arXiv:2211.11014, released code: cross-entropy + 0.01·Σ_p ‖p‖₂."""


def top_eigenvalues(
    loss: Callable[[], Tensor],
    parameters: Iterable[Tensor],
    top: int = 3,
    tolerance: float = 1e-3,
    vectors: int = 12,
    restarts: int = 100,
    seed: int = 0,
) -> list[float]:
    """Compute the `top` eigenvalues of ∂²loss/∂parameters² of largest magnitude, by Lanczos' method (ARPACK).

    The loss is computed once; each product is a double backward pass through its graph. The derivative of a
    straight-through estimator is that of its backward pass. Leave out learned step sizes, whose estimated gradient does
    not belong to a function, so that the Hessian is not symmetric. The model must be in evaluation mode and its attention
    opened (`open_attention`) or eager: fused kernels have no second derivative. Memory: the graph, and `vectors` numbers
    per parameter (5 GB for BERT-base).

    Source: arXiv:2211.11014 §3 and 2302.11812 §4, by power iteration with deflation, which finds the largest magnitudes.

    Args:
        loss: a deterministic scalar function of the parameters; those without a gradient are left out.
        tolerance: relative, of the eigenvalues.
        vectors: Lanczos vectors in memory; more than 2·top converge well.
        restarts: largest number of restarts; eigenvalues that have not converged are left out, with a warning.
        seed: seed of the start vector.

    Raises:
        ValueError: no parameter that needs a gradient; not more parameters than `top`; a loss that is not finite.
    """
    chosen = [parameter for parameter in parameters if parameter.requires_grad]
    size = sum(parameter.numel() for parameter in chosen)
    if not 1 <= top < size:
        raise ValueError(f"top={top} eigenvalues of {size} trainable parameters: top must be 1 or more, and smaller")
    product, kind = _hessian_product(loss, chosen)
    start = np.random.default_rng(seed).standard_normal(size).astype(kind)
    first = product(start)
    if not np.isfinite(first).all():
        raise ValueError("the Hessian is not finite: the loss, or a derivative of it, is inf or nan at these weights")
    if not first.any():  # ARPACK needs a start vector that is not 0
        return [0.0] * top
    found = _lanczos(product, start, top, tolerance, min(size, max(vectors, top + 2)), restarts)
    return sorted(map(float, found), key=abs, reverse=True)


def hessian_spectrum(
    loss: Callable[[Batch], Tensor], parameters: Sequence[Tensor], batches: Iterable[Batch], **settings: object
) -> list[list[float]]:
    """Compute the top eigenvalues of each mini-batch, which the papers pool to a spectrum (arXiv:2211.11014, 2302.11812).

    Args:
        settings: arguments of `top_eigenvalues`.
    """
    return [top_eigenvalues(lambda batch=batch: loss(batch), parameters, **settings) for batch in batches]  # type: ignore[misc, arg-type]


def with_norms(
    loss: Callable[[Batch], Tensor], parameters: Sequence[Tensor], weight: float = NORM_WEIGHT
) -> Callable[[Batch], Tensor]:
    """Return loss + weight·Σ_p ‖p‖₂ (norms, not their squares), as in the released code of arXiv:2211.11014.

    It adds eigenvalues weight/‖p‖, which are large for a tensor of small norm. A tensor of zeros is left out: its norm has
    no derivative.
    """

    def penalised(batch: Batch) -> Tensor:
        norms = [p.square().sum().sqrt() for p in parameters if p.requires_grad and bool(p.detach().any())]
        return loss(batch) + weight * torch.stack(norms).sum() if norms else loss(batch)

    return penalised


def _hessian_product(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> tuple[Product, np.dtype]:
    """Return the function vector → Hessian · vector, and its precision."""
    kind = torch.float64 if any(parameter.dtype == torch.float64 for parameter in parameters) else torch.float32
    with torch.enable_grad():
        first = torch.autograd.grad(loss(), parameters, create_graph=True, allow_unused=True, materialize_grads=True)
    curved = [index for index, gradient in enumerate(first) if gradient.requires_grad]  # the others are constant
    sizes = [parameter.numel() for parameter in parameters]

    def product(vector: np.ndarray) -> np.ndarray:
        if not curved:
            return np.zeros_like(vector)
        pieces = torch.from_numpy(np.ascontiguousarray(vector).reshape(-1)).split(sizes)
        second = torch.autograd.grad(
            [first[index] for index in curved],
            parameters,
            [pieces[index].view_as(first[index]).to(first[index]) for index in curved],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return torch.cat([gradient.detach().reshape(-1).to("cpu", kind) for gradient in second]).numpy()

    return product, np.dtype("float64" if kind == torch.float64 else "float32")


def _lanczos(
    product: Product, start: np.ndarray, top: int, tolerance: float, vectors: int, restarts: int
) -> np.ndarray:
    """Return the eigenvalues that converge."""
    operator = LinearOperator((len(start), len(start)), matvec=product, dtype=start.dtype)
    try:
        return eigsh(operator, top, None, None, "LM", start, vectors, restarts, tolerance, return_eigenvectors=False)
    except ArpackNoConvergence as stopped:
        warnings.warn(
            f"{len(stopped.eigenvalues)} of {top} eigenvalues converged in {restarts} restarts: set more restarts=… or"
            " vectors=…, or a larger tolerance=…",
            stacklevel=3,
        )
        return stopped.eigenvalues
    except ArpackError as failed:
        raise ValueError(f"no eigenvalue was found ({failed}): set another seed=… or more vectors=…") from failed
