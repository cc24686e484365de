"""What a model costs, side by side in one process: `python -m qat_lightning.bench`."""

from qat_lightning.bench.command import run_bench

__all__ = ["run_bench"]
