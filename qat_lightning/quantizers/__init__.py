"""A tensor → the nearest tensor on a low-precision grid."""

from qat_lightning.quantizers.affine import AffineQuantizer
from qat_lightning.quantizers.base import Quantizer
from qat_lightning.quantizers.binary import BinaryQuantizer
from qat_lightning.quantizers.held import evaluation
from qat_lightning.quantizers.lsq import LSQQuantizer
from qat_lightning.quantizers.ternary import TernaryQuantizer
from qat_lightning.quantizers.uniform import UniformQuantizer

__all__ = [
    "AffineQuantizer",
    "BinaryQuantizer",
    "LSQQuantizer",
    "Quantizer",
    "TernaryQuantizer",
    "UniformQuantizer",
    "evaluation",
]
