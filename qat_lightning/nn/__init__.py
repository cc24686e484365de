"""Modules that compute on quantized tensors."""

from qat_lightning.nn.attention import AttentionCore
from qat_lightning.nn.layers import QuantConv1D, QuantEmbedding, QuantLinear

__all__ = ["AttentionCore", "QuantConv1D", "QuantEmbedding", "QuantLinear"]
