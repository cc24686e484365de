"""Learned step size quantization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qat_lightning.quantization.quantizers.base import (
    Granularity,
    IntegerGrid,
    Quantizer,
    arguments,
    check_choice,
    to_float32,
)
from qat_lightning.quantization.quantizers.initialization import INITIALIZATIONS, Initialization
from qat_lightning.quantization.quantizers.reuse import attach_codes
from qat_lightning.quantization.quantizers.straight_through import learned_step

Parametrization = Literal["clip_threshold", "step_size"]
GradientScale = Literal["none", "elements", "features"]

SMALLEST, LARGEST = 1e-5, 1e30
"""The learned parameter never falls below; BinaryBERT's floor of the step (arXiv:2012.15701, released code)."""


class LSQQuantizer(Quantizer):
    """x̂ = s·round(clip(x/s, −Q_N, Q_P)), with the step s, or a threshold that gives it, trained by gradient.

    parametrization="clip_threshold" learns α = s·Q, Q_N = Q_P = 2^(bits−1) − 1, so 2 bits are ternary: KDLSQ-BERT's
    released form, x̂ = α·round(clip(x/α, −1, 1)·Q)/Q (arXiv:2101.05938).
    parametrization="step_size" learns s itself over all 2^bits codes,
    Q_N = 2^(bits−1), Q_P = 2^(bits−1) − 1 (arXiv:1902.08153 §2). Unsigned: 0 … 2^bits − 1 in both.

    Args:
        granularity: "per_channel" and "per_group" have a step for each and are for weights only, as their shape must stay.
        clip_gradient: outside the range no gradient reaches x (LSQ; KDLSQ's activations). False lets it pass everywhere
            (KDLSQ's weights, released code).
        gradient_scale: factor 1/√(N·Q_P) on the step's gradient: "elements", N = all elements that share the step
            (LSQ's weights); "features", N = those of one sample (LSQ's activations); "none" as KDLSQ's release.
        initialization: "percentile", "kl", "lsq" or "minmax", see `qat_lightning.quantization.quantizers.initialization`.
        tail: γ of the percentile initialization; γ/2 of the values lie beyond the threshold on either side.

    Attributes:
        step_size: the learned parameter, one for the tensor, a row or a group; always positive and finite. It is s, or with
            parametrization="clip_threshold" the threshold α = s·Q.
        following: if True, `step_size` is measured on each tensor of the training, joined by `join` with those of the other
            processes, and gets no gradient.

    Raises:
        ValueError: bits outside 2…8; an unknown option; a tensor with another number of rows than the first one.
    """

    kind, scale = "LSQ", "learned"
    bits_range, has_zero_point = (2, 8), False
    rows_are_independent = False

    def __init__(
        self,
        bits: int = 8,
        granularity: Granularity = "per_tensor",
        parametrization: Parametrization = "clip_threshold",
        signed: bool = True,
        clip_gradient: bool = True,
        gradient_scale: GradientScale = "none",
        initialization: Initialization = "percentile",
        tail: float = 0.05,
        group_size: int | None = None,
    ) -> None:
        super().__init__(bits, granularity, None, group_size)
        check_choice(parametrization, Parametrization, "parametrization")
        check_choice(gradient_scale, GradientScale, "gradient_scale")
        check_choice(initialization, Initialization, "initialization")
        if not 0 <= tail < 1:
            raise ValueError(f"tail={tail} is a share of the values: 0 or more, less than 1")
        self.code_type = torch.int8 if signed else torch.uint8
        self.parametrization, self.signed, self.clip_gradient = parametrization, signed, clip_gradient
        self.gradient_scale, self.initialization, self.tail = gradient_scale, initialization, tail
        half = 2 ** (bits - 1)
        self.high = float(half - 1 if signed else 2**bits - 1)
        self.low = 0.0 if not signed else -self.high if parametrization == "clip_threshold" else -float(half)
        self.source = "arXiv:2101.05938" if parametrization == "clip_threshold" else "arXiv:1902.08153"
        self.step_size = nn.Parameter(torch.tensor(1.0))
        self.measured = 0
        self.following = False
        self.join: Callable[[Tensor], Tensor] = torch.Tensor.detach

    def levels(self) -> int:
        return int(self.high - self.low) + 1

    def spec(self) -> dict[str, Any]:
        return arguments(self)

    def integer_grid(self) -> IntegerGrid | None:
        return IntegerGrid(self.low, self.high, self.step, None) if self.granularity == "per_tensor" else None

    @property
    def step(self) -> Tensor:
        """s, with the gradient of `step_size`."""
        return self.step_size / self.high if self.parametrization == "clip_threshold" else self.step_size

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return x
        if (cached := self.find_cached(x)) is not None:
            return cached
        if self.following and self.training:
            self._set(self.measure(self.join(x.detach())))
        wide, with_gradient = self.grouped(to_float32(x)), torch.is_grad_enabled()
        step = (self.step.detach() if self.following else self.step).to(wide.dtype)
        with torch.no_grad():
            codes, scale, zero_point = self.codes(x)
            in_bytes = self.codes_in_bytes(codes, scale, zero_point, x) if with_gradient else None
            codes.mul_(scale)
        quantized = learned_step(wide, step, codes, self.low, self.high, self.clip_gradient, self._factor(x))
        return attach_codes(quantized.reshape(x.shape).to(x.dtype), in_bytes)

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, step = self.prepared(x), self.step.detach()
        step = step.to(x.dtype)
        return (x / step).round_().clamp_(self.low, self.high), step, torch.zeros_like(step)

    @torch.no_grad()
    def measure(self, x: Tensor) -> Tensor:
        """Compute the initial `step_size` for x, in the shape of `step_size`."""
        x = self.prepared(x)
        rows = x.reshape(1, -1) if self.granularity == "per_tensor" else x.flatten(0, -2)
        threshold = INITIALIZATIONS[self.initialization](rows, self.bits, self.high, self.tail)
        value = threshold if self.parametrization == "clip_threshold" else threshold / self.high
        value = value.clamp(SMALLEST, LARGEST)
        return value.squeeze() if self.granularity == "per_tensor" else value.reshape(*x.shape[:-1], 1)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set `step_size` to the mean of `measure` over the tensors of all calls."""
        measured, self.measured = self.measure(x), self.measured + 1
        if self.measured == 1:
            self._set(measured)
        elif measured.shape == self.step_size.shape:
            self.step_size.add_((measured - self.step_size) / self.measured)
        else:
            raise ValueError(f"granularity={self.granularity} is for weights: give activations granularity=per_tensor")

    @torch.no_grad()
    def keep_positive(self) -> None:
        """Clamp the step size to SMALLEST … LARGEST after an optimizer step; NaN, from an overflow, becomes SMALLEST."""
        top = min(LARGEST, torch.finfo(self.step_size.dtype).max)
        self.step_size.nan_to_num_(nan=SMALLEST, posinf=top, neginf=SMALLEST).clamp_(SMALLEST, top)

    def _set(self, value: Tensor) -> None:
        with torch.no_grad():
            if value.shape == self.step_size.shape:
                self.step_size.copy_(value)
            else:
                self.step_size = nn.Parameter(value.to(self.step_size))

    def _factor(self, x: Tensor) -> float:
        if self.gradient_scale == "none":
            return 1.0
        sharing = x.numel() // self.scales(x.shape)
        if self.gradient_scale == "features":
            sharing = max(1, sharing // x.shape[0])
        return float((sharing * self.high) ** -0.5)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, parametrization={self.parametrization}, initialization={self.initialization}"
