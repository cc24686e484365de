"""What a model, or its training, costs: `python -m qat_lightning.bench`. Imports nothing, so that --help need not wait."""
