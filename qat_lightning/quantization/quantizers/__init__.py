"""A tensor → the nearest tensor on a low-precision grid."""

from qat_lightning.quantization.quantizers.affine import AffineQuantizer
from qat_lightning.quantization.quantizers.base import IntegerGrid, Quantizer
from qat_lightning.quantization.quantizers.binary import BinaryQuantizer
from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from qat_lightning.quantization.quantizers.reuse import evaluation
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer

__all__ = [
    "AffineQuantizer", "BinaryQuantizer", "IntegerGrid", "LSQQuantizer", "Quantizer", "TernaryQuantizer",
    "UniformQuantizer", "evaluation",
]  # fmt: skip
