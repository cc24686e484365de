"""A tensor → the nearest tensor on a low-precision grid."""

from qat_lightning.quantizers.base import Quantizer
from qat_lightning.quantizers.ternary import TernaryQuantizer
from qat_lightning.quantizers.uniform import UniformQuantizer

__all__ = ["Quantizer", "TernaryQuantizer", "UniformQuantizer"]
