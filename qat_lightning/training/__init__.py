"""The only floor that knows how to train."""

from qat_lightning.training.module import QATModule

__all__ = ["QATModule"]
