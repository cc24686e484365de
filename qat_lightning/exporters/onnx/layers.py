"""Layers and attention as an ONNX graph computes them, in place of those of training.

Shapes: … leading dimensions, K inputs, N outputs; of attention as in `qat_lightning.quantization.modules.attention`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qat_lightning.exporters.onnx.activations import (
    IntegerInput,
    at_work,
    float_input,
    integer_input,
    multiply_integers,
)
from qat_lightning.exporters.onnx.weights import FloatWeight, IntegerWeight, is_integer
from qat_lightning.quantization.modules.attention import InstrumentedAttention, for_heads
from qat_lightning.quantization.modules.layers import QuantConv2d, QuantEmbedding, QuantLinear
from qat_lightning.quantization.packing.stored_weight import Stored, stored


class IntegerLinear(nn.Module):
    """y = (codes of x · codes of W) · both scales + b: a product of whole numbers, exact in int32."""

    def __init__(self, inputs: IntegerInput, weight: IntegerWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.inputs, self.weight, self.bias = inputs, weight, bias

    def forward(self, input: Tensor) -> Tensor:
        codes, scale, zero = self.inputs(input)
        product = multiply_integers(codes, self.weight(), zero, self.weight.zero).float()
        scaled = product * (scale * self.weight.scale)
        return scaled if self.bias is None else scaled + self.bias


class FloatLinear(nn.Module):
    """y = x̂ Ŵᵀ + b in float32, Ŵ unpacked when the runtime loads it, or in full precision."""

    def __init__(self, inputs: nn.Module, weight: FloatWeight | nn.Parameter, bias: Tensor | None) -> None:
        super().__init__()
        self.inputs, self.weight, self.bias = inputs, weight, bias

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight() if isinstance(self.weight, FloatWeight) else self.weight
        return functional.linear(self.inputs(input), weight, self.bias)


class FloatConv2d(nn.Module):
    """A convolution in float32, its weight unpacked when the runtime loads it."""

    weight: Tensor

    def __init__(self, conv: QuantConv2d, kernel: FloatWeight | nn.Parameter) -> None:
        super().__init__()
        self.inputs, self.kernel, self.bias = float_input(conv.input_quantizer), kernel, conv.bias
        self.shape = conv.weight.shape
        self.options: dict[str, Any] = {
            "stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation, "groups": conv.groups
        }  # fmt: skip
        self.register_buffer("weight", conv.weight.new_empty(0))  # transformers asks for its dtype

    def forward(self, input: Tensor) -> Tensor:
        kernel = self.kernel() if isinstance(self.kernel, FloatWeight) else self.kernel
        return functional.conv2d(self.inputs(input), kernel.view(self.shape), self.bias, **self.options)


class PackedEmbedding(nn.Module):
    """Rows of a packed table, unpacked as they are looked up."""

    def __init__(self, weight: FloatWeight) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, input: Tensor) -> Tensor:
        return self.weight(input)


class Product(nn.Module):
    """left · right · factor, or left · rightᵀ: of whole numbers where both operands' quantizers allow, else in float32."""

    def __init__(self, left: nn.Module, right: nn.Module, positive: bool = False, transposed: bool = False) -> None:
        super().__init__()
        self.transposed = transposed
        whole = integer_input(left, positive), integer_input(right)
        self.whole = None not in whole
        self.left = whole[0] if self.whole else float_input(left)
        self.right = whole[1] if self.whole else float_input(right)

    def forward(self, left: Tensor, right: Tensor, factor: float = 1.0) -> Tensor:
        if not self.whole:
            right = self.right(right)  # type: ignore[misc]
            return self.left(left) @ (right.mT if self.transposed else right) * factor  # type: ignore[misc]
        # With one scale for the tensor it may be transposed first: the runtime makes one of this and that of the heads.
        first, second = self.left(left), self.right(right.mT if self.transposed else right)  # type: ignore[misc]
        product = multiply_integers(first.codes, second.codes, first.zero, second.zero).float()
        return product * (first.scale * second.scale * factor)


class PackedCore(nn.Module):
    """The opened attention without ports: softmax(Q(q) Q(k)ᵀ·s + mask), Q(·) Q(v)."""

    def __init__(self, core: InstrumentedAttention) -> None:
        super().__init__()
        self.scores = Product(core.query_quantizer, core.key_quantizer, transposed=True)
        self.context = Product(core.probs_quantizer, core.value_quantizer, positive=True)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, dropout: float
    ) -> tuple[Tensor, Tensor]:
        key, value = for_heads(key, query), for_heads(value, query)
        scores = self.scores(query, key, scaling)
        probs = functional.softmax(scores if mask is None else scores + mask, dim=-1)
        return self.context(probs, value).transpose(1, 2).contiguous(), probs


def replace_layers(model: nn.Module) -> nn.Module:
    """Replace each quantized layer by its form in an ONNX graph, in place (pass a copy)."""
    for path, module in list(model.named_modules()):
        if isinstance(module, QuantLinear):
            model.set_submodule(path, _linear(module))
        elif isinstance(module, QuantConv2d):
            model.set_submodule(path, FloatConv2d(module, _float_weight(module)))
        elif isinstance(module, QuantEmbedding) and at_work(module.weight_quantizer):
            model.set_submodule(path, PackedEmbedding(FloatWeight(_stored(module))))
        elif isinstance(module, InstrumentedAttention):
            model.set_submodule(path, PackedCore(module))
    return model


def _linear(layer: QuantLinear) -> nn.Module:
    inputs = integer_input(layer.input_quantizer)
    if inputs is not None and at_work(layer.weight_quantizer) and is_integer(stored_weight := _stored(layer)):
        return IntegerLinear(inputs, IntegerWeight(stored_weight), layer.bias)
    return FloatLinear(float_input(layer.input_quantizer), _float_weight(layer), layer.bias)


def _float_weight(layer: QuantLinear | QuantConv2d) -> FloatWeight | nn.Parameter:
    if at_work(layer.weight_quantizer):
        return FloatWeight(_stored(layer))
    with torch.no_grad():
        return nn.Parameter(layer.weight_quantizer(layer.quantized_weight), requires_grad=False)


def _stored(layer: nn.Module) -> Stored:
    return stored(layer.quantized_weight, layer.weight_quantizer)  # type: ignore[arg-type]
