"""The papers' optimizer, where torch has none like it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch.optim import Optimizer

StepCount = Literal["per_tensor", "shared"]
"""Which steps decide a tensor's place in the learning-rate schedule: those in which it had a gradient, or all of them."""


class BertAdam(Optimizer):
    """Adam as BERT was released with: no bias correction, decoupled weight decay, each tensor's gradient clipped by itself.

    m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)g², w ← w − lr · (m / (√v + ε) + decay · w), where g is first scaled to a norm
    of at most `clip`. TernaryBERT, KD-QAT and Teacher Intervention train with it (arXiv:2009.12812, 2211.11014,
    2302.11812; released code). A parameter without a gradient is left alone, decay included: weights that a stage does
    not train stay bit for bit what they were.

    The two step counts differ only for a tensor that has no gradient in some steps, as W_V and W_O under Teacher
    Intervention. With "per_tensor" such a tensor takes, at its k-th gradient, the learning rate that the schedule had at
    step k, so its own warm-up begins when it begins to learn (arXiv:2302.11812, released code). With "shared" all tensors
    take the rate of the current step, as in `torch.optim`. The first updates are the largest: without bias correction the
    first one is (1 − β₁)/√(1 − β₂) = 3.2 times lr, which the warm-up is there to reduce.

    Args:
        params: parameters, or groups of them with their own settings.
        lr, eps, weight_decay: 0 or more; betas: β₁ and β₂, 0 or more and less than 1.
        clip: largest norm of one tensor's gradient; 0 for no clipping.
        step_count: "per_tensor" or "shared", see above.

    Raises:
        ValueError: an argument outside of its range.

    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = BertAdam([weight], lr=0.1, weight_decay=0.0)
    >>> weight.grad = torch.tensor([0.5])
    >>> optimizer.step()
    >>> round(weight.item(), 4)
    0.6838
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        clip: float = 1.0,
        step_count: StepCount = "per_tensor",
    ) -> None:
        rates = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, rates | {"clip": clip, "step_count": step_count})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        _check(self.param_groups[-1])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for lr, parameters in self._by_rate(group):
                self._step(group, lr, parameters)
        return loss

    def _by_rate(self, group: dict[str, Any]) -> list[tuple[float, list[torch.Tensor]]]:
        """The parameters that have a gradient, with the learning rate of each."""
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {"mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        if group["step_count"] == "shared":
            return [(group["lr"], parameters)] if parameters else []
        rates = group.setdefault("rates", [])  # of each step so far; a part of the optimizer's saved state
        rates.append(float(group["lr"]))
        by_count: dict[int, list[torch.Tensor]] = defaultdict(list)
        for parameter in parameters:
            count = self.state[parameter].get("count", 0)
            self.state[parameter]["count"] = count + 1
            by_count[count].append(parameter)
        return [(rates[count], same) for count, same in by_count.items()]

    def _step(self, group: dict[str, Any], lr: float, parameters: list[torch.Tensor]) -> None:
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
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_addcdiv_(parameters, means, denominators, -lr)


def _check(group: dict[str, Any]) -> None:
    """Raises ValueError for a setting outside of its range."""
    for name in ("lr", "eps", "weight_decay", "clip"):
        if not 0 <= group[name] < math.inf:
            raise ValueError(f"{name}={group[name]} must be 0 or more, and finite")
    if (counted := group["step_count"]) not in get_args(StepCount):
        raise ValueError(f"step_count={counted!r} is unknown: choose one of {', '.join(get_args(StepCount))}")
    betas = group["betas"]
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas={list(betas)} must be two numbers, each 0 or more and less than 1")
