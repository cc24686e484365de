"""Hugging Face models: where their signals and modules are, capturing, quantizing, and what they take."""
