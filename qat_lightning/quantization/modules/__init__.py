"""Modules that compute on quantized tensors."""

from qat_lightning.quantization.modules.attention import AttentionCore
from qat_lightning.quantization.modules.layers import QuantConv1D, QuantEmbedding, QuantLinear

__all__ = ["AttentionCore", "QuantConv1D", "QuantEmbedding", "QuantLinear"]
