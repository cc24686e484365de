"""Measure what inference or training costs: `python -m qat_lightning.bench [bench=…] [overrides]`."""

from qat_lightning.commands.cli import bench

if __name__ == "__main__":
    bench()
