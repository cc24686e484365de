"""The packed export: codes at their true width in safetensors."""
