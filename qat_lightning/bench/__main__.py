"""`python -m qat_lightning.bench [bench=inference] [overrides]`: what a model costs, side by side; JSON with output=FILE."""

from qat_lightning.cli import bench

if __name__ == "__main__":
    bench()
