"""Every quantizer that the shared contract holds for. A new quantizer is a new row here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from qat_lightning.quantization.quantizers.affine import AffineQuantizer
from qat_lightning.quantization.quantizers.base import Quantizer
from qat_lightning.quantization.quantizers.binary import BinaryQuantizer
from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer

QUANTIZERS: dict[str, Callable[[], Quantizer]] = {
    "ternary": TernaryQuantizer,
    "ternary by row": partial(TernaryQuantizer, granularity="per_channel"),
    "ternary without clip": partial(TernaryQuantizer, clip=None),
    "uniform 2 bits": partial(UniformQuantizer, bits=2),
    "uniform 4 bits": partial(UniformQuantizer, bits=4),
    "uniform 4 bits by row": partial(UniformQuantizer, bits=4, granularity="per_channel"),
    "uniform 8 bits": UniformQuantizer,
    "uniform 8 bits by row": partial(UniformQuantizer, granularity="per_channel"),
    "uniform 8 bits without clip": partial(UniformQuantizer, clip=None),
    "uniform 8 bits static": partial(UniformQuantizer, scale="static"),
    "binary": partial(BinaryQuantizer, granularity="per_tensor"),
    "binary by row": BinaryQuantizer,
    "affine 8 bits": AffineQuantizer,
    "affine 4 bits by row": partial(AffineQuantizer, bits=4, granularity="per_channel"),
    "affine 4 bits, symmetric ends": partial(AffineQuantizer, bits=4, range="symmetric"),
    "affine 4 bits, mean ends": partial(AffineQuantizer, bits=4, range="mean"),
    "affine 8 bits static": partial(AffineQuantizer, scale="static"),
    "learned threshold 2 bits": partial(LSQQuantizer, bits=2),
    "learned threshold 8 bits": LSQQuantizer,
    "learned step 4 bits": partial(LSQQuantizer, bits=4, parametrization="step_size"),
    "learned step 4 bits, unsigned": partial(LSQQuantizer, bits=4, parametrization="step_size", signed=False),
}
LEARNED = [name for name in QUANTIZERS if name.startswith("learned")]
STATELESS = [name for name in QUANTIZERS if name not in LEARNED]
WITH_ZERO = [name for name in QUANTIZERS if not name.startswith(("binary", "affine"))]
"""Zero is on the grid, so the zero_point is a whole number."""
ODD = [name for name in WITH_ZERO if not name.startswith("learned step")]
"""As many levels below zero as above."""
BY_ROW = [name for name in QUANTIZERS if name.endswith("by row")]

KINDS: dict[str, Callable[..., Quantizer]] = {
    "ternary": TernaryQuantizer,
    "binary": BinaryQuantizer,
    **{f"uniform {bits} bits": partial(UniformQuantizer, bits=bits) for bits in (2, 3, 4, 8)},
    **{
        f"affine 4 bits, {ends}": partial(AffineQuantizer, bits=4, range=ends)
        for ends in ("minmax", "symmetric", "mean")
    },
    "affine 8 bits": AffineQuantizer,
    "learned threshold 2 bits": partial(LSQQuantizer, bits=2),
    "learned threshold 8 bits": LSQQuantizer,
    "learned step 4 bits": partial(LSQQuantizer, bits=4, parametrization="step_size", gradient_scale="elements"),
    "learned step, unsigned": partial(LSQQuantizer, bits=4, parametrization="step_size", signed=False),
}
"""What can be made with each of the granularities."""
GRANULARITIES: dict[str, dict[str, object]] = {
    name: {"granularity": name} | more
    for name, more in {"per_tensor": {}, "per_channel": {}, "per_group": {"group_size": 4}}.items()
}
