"""Layers whose weights, and inputs, pass through a quantizer. Any module will do as a quantizer.

`quantized_weight` is the weight as its quantizer sees it: one row for each output channel, or for each token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qat_lightning.quantization.modules.compressed_activations import as_autocast, keep_codes_of, saved_as_codes


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x · weightᵀ + bias; quantized operands are saved for the backward pass as codes."""
    if torch.compiler.is_compiling():  # a compiler decides itself what is saved
        return functional.linear(x, weight, bias)
    x, weight = as_autocast(x), as_autocast(weight)
    with saved_as_codes(x, weight):
        return functional.linear(x, weight, bias)


class QuantLinear(nn.Linear):
    """y = Q_input(x) · Q_weight(W)ᵀ + b, over the parameters of `linear`, which are shared; no quantizer: full precision."""

    def __init__(
        self, linear: Any, weight_quantizer: nn.Module | None = None, input_quantizer: nn.Module | None = None
    ) -> None:
        super().__init__(1, 1, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.out_features, self.in_features = self.quantized_weight.shape
        self.weight_quantizer = weight_quantizer or nn.Identity()
        self.input_quantizer = input_quantizer or nn.Identity()
        keep_codes_of(self.weight_quantizer, self.input_quantizer)
        self.train(linear.training)

    @property
    def quantized_weight(self) -> Tensor:
        return self.weight

    def forward(self, input: Tensor) -> Tensor:
        return linear(self.input_quantizer(input), self.weight_quantizer(self.quantized_weight), self.bias)


class QuantConv1D(QuantLinear):
    """The same for GPT-2's Conv1D, a linear layer that keeps its weight transposed, (inputs, outputs)."""

    @property
    def nf(self) -> int:
        return self.out_features

    @property
    def quantized_weight(self) -> Tensor:
        return self.weight.t()


class QuantConv2d(nn.Conv2d):
    """The same for a convolution whose kernel is a patch of an image: one row of the weight for each output channel.

    Args:
        conv: the layer to take over; its parameters are shared, not copied.
    """

    def __init__(
        self, conv: nn.Conv2d, weight_quantizer: nn.Module | None = None, input_quantizer: nn.Module | None = None
    ) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            conv.bias is not None,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.weight_quantizer = weight_quantizer or nn.Identity()
        self.input_quantizer = input_quantizer or nn.Identity()
        self.train(conv.training)

    @property
    def quantized_weight(self) -> Tensor:
        return self.weight.flatten(1)

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight_quantizer(self.quantized_weight).view_as(self.weight)
        return functional.conv2d(
            self.input_quantizer(input), weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class QuantEmbedding(nn.Embedding):
    """Rows of a quantized table, over the same parameters as `embedding`.

    A quantizer whose rows are independent quantizes only the rows of the batch: the same result as quantizing
    the whole table (BERT's has 30,522 rows) and then looking up.
    """

    embed_scale: Tensor | None

    def __init__(self, embedding: nn.Embedding, weight_quantizer: nn.Module) -> None:
        super().__init__(
            embedding.num_embeddings, embedding.embedding_dim, padding_idx=embedding.padding_idx, device="meta"
        )
        self.weight = embedding.weight
        self.weight_quantizer = weight_quantizer
        self.register_buffer("embed_scale", getattr(embedding, "embed_scale", None), persistent=False)  # Gemma's factor
        self.train(embedding.training)

    @property
    def quantized_weight(self) -> Tensor:
        return self.weight

    @property
    def by_rows(self) -> bool:
        """Whether only the batch's rows are quantized."""
        quantizer = self.weight_quantizer
        return getattr(quantizer, "rows_are_independent", False) and quantizer.granularity != "per_tensor"

    def forward(self, input: Tensor) -> Tensor:
        if self.by_rows:
            rows = self.weight_quantizer(functional.embedding(input, self.weight, self.padding_idx))
        else:
            rows = functional.embedding(input, self.weight_quantizer(self.weight), self.padding_idx)
        return rows if self.embed_scale is None else rows * self.embed_scale.to(self.weight.dtype)
