"""Modules that compute on quantized tensors."""

from qat_lightning.quantization.modules.attention import InstrumentedAttention
from qat_lightning.quantization.modules.layers import QuantConv1D, QuantEmbedding, QuantLinear

__all__ = ["InstrumentedAttention", "QuantConv1D", "QuantEmbedding", "QuantLinear"]
