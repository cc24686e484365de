"""Every quantizer that the shared contract holds for. A new quantizer is a new row here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from qat_lightning.quantizers import Quantizer, TernaryQuantizer, UniformQuantizer

QUANTIZERS: dict[str, Callable[[], Quantizer]] = {
    "ternary": TernaryQuantizer,
    "ternary by row": partial(TernaryQuantizer, granularity="row"),
    "ternary without clip": partial(TernaryQuantizer, clip=None),
    "uniform 2 bits": partial(UniformQuantizer, bits=2),
    "uniform 4 bits": partial(UniformQuantizer, bits=4),
    "uniform 4 bits by row": partial(UniformQuantizer, bits=4, granularity="row"),
    "uniform 8 bits": UniformQuantizer,
    "uniform 8 bits by row": partial(UniformQuantizer, granularity="row"),
    "uniform 8 bits without clip": partial(UniformQuantizer, clip=None),
    "uniform 8 bits static": partial(UniformQuantizer, scale="static"),
}
BY_ROW = [name for name in QUANTIZERS if name.endswith("by row")]
