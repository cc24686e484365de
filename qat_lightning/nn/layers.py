"""Linear and embedding layers whose weights, and inputs, pass through a quantizer. Any module will do as a quantizer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class QuantLinear(nn.Linear):
    """y = Q_input(x) · Q_weight(W)ᵀ + b, over the very parameters of `linear`.

    Args:
        linear: the layer to take over; its parameters are shared, not copied.
        weight_quantizer, input_quantizer: None leaves that tensor in full precision.
    """

    def __init__(
        self, linear: nn.Linear, weight_quantizer: nn.Module | None = None, input_quantizer: nn.Module | None = None
    ) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.weight_quantizer = weight_quantizer or nn.Identity()
        self.input_quantizer = input_quantizer or nn.Identity()
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(self.input_quantizer(input), self.weight_quantizer(self.weight), self.bias)


class QuantEmbedding(nn.Embedding):
    """Rows of a quantized table, over the very parameters of `embedding`.

    A quantizer with one scale a row sees only the rows of the batch: the same result as quantizing the whole table
    (BERT's has 30,522 rows) and then looking up.
    """

    def __init__(self, embedding: nn.Embedding, weight_quantizer: nn.Module) -> None:
        super().__init__(
            embedding.num_embeddings, embedding.embedding_dim, padding_idx=embedding.padding_idx, device="meta"
        )
        self.weight = embedding.weight
        self.weight_quantizer = weight_quantizer
        self.train(embedding.training)

    def forward(self, input: Tensor) -> Tensor:
        if getattr(self.weight_quantizer, "granularity", "tensor") == "row":
            return self.weight_quantizer(functional.embedding(input, self.weight, self.padding_idx))
        return functional.embedding(input, self.weight_quantizer(self.weight), self.padding_idx)
