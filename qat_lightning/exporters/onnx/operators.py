"""The standard ONNX operators that torch has no words for, as symbols in an exported graph; outside of one they say nothing.

Shapes: … leading dimensions, R rows, K inputs, N outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.onnx.ops import symbolic


def quantize_linear(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """QuantizeLinear: clip(round(x / scale) + zero, 0, 255), uint8; one scale for the tensor."""
    return symbolic("QuantizeLinear", [x, scale, zero], dtype=torch.uint8, shape=x.shape)


def multiply_integers(left: Tensor, right: Tensor, left_zero: Tensor, right_zero: Tensor) -> Tensor:
    """MatMulInteger: (left − left_zero)(right − right_zero), (…, R, K) and (…, K, N), 8 bits → int32 (…, R, N)."""
    shape = [*left.shape[:-1], right.shape[-1]]
    return symbolic("MatMulInteger", [left, right, left_zero, right_zero], dtype=torch.int32, shape=shape)
