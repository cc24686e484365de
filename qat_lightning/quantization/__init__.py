"""Quantizers, the modules that use them, and the packing of their codes into bytes."""
