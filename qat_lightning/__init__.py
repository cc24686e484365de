"""Ultra-low-bit quantization-aware training with distillation for Transformers."""
