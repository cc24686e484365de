"""`python -m qat_lightning.bench [bench=…] [overrides]`: what a model or its training costs, side by side."""

from qat_lightning.commands.cli import bench

if __name__ == "__main__":
    bench()
