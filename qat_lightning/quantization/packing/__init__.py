"""Codes of quantized weights, packed into bytes."""
