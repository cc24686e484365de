"""Modules that compute on quantized tensors."""

from qat_lightning.nn.attention import AttentionCore
from qat_lightning.nn.layers import QuantEmbedding, QuantLinear

__all__ = ["AttentionCore", "QuantEmbedding", "QuantLinear"]
