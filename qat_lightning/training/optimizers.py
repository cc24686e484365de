"""The papers' optimizer, where torch has none like it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer


class BertAdam(Optimizer):
    """Adam as BERT was released with: no bias correction, decoupled weight decay, each tensor's gradient clipped by itself.

    m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)g², w ← w − lr · (m / (√v + ε) + decay · w), where g is first scaled to a norm
    of at most `clip`. TernaryBERT, KD-QAT and Teacher Intervention train with it (arXiv:2009.12812, 2211.11014,
    2302.11812; released code). A parameter without a gradient is left alone, decay included: weights that a stage does
    not train stay bit for bit what they were.

    Args:
        clip: largest norm of one tensor's gradient; 0 for no clipping.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        clip: float = 1.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "clip": clip}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step(group, [parameter for parameter in group["params"] if parameter.grad is not None])
        return loss

    def _step(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        if not parameters:
            return
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {"mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        means = [self.state[parameter]["mean"] for parameter in parameters]
        squares = [self.state[parameter]["square"] for parameter in parameters]
        if group["clip"] > 0:
            norms = torch._foreach_norm(gradients)
            gradients = [
                gradient * (group["clip"] / (norm + 1e-6)).clamp(max=1.0)
                for gradient, norm in zip(gradients, norms, strict=True)
            ]
        first, second = group["betas"]
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_addcdiv_(parameters, means, denominators, -group["lr"])
