"""Quantizers as data: a class name and the arguments of its constructor, and back, for the classes of the house alone."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from qat_lightning.quantization.quantizers.affine import AffineQuantizer
from qat_lightning.quantization.quantizers.base import Quantizer
from qat_lightning.quantization.quantizers.binary import BinaryQuantizer
from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer

KNOWN: Mapping[str, type[Quantizer]] = {
    quantizer.__name__: quantizer
    for quantizer in (AffineQuantizer, BinaryQuantizer, LSQQuantizer, TernaryQuantizer, UniformQuantizer)
}
"""What a description can name; nothing is ever imported by a name."""


def describe(quantizer: object) -> dict[str, Any]:
    """{"name": its class, and each argument of its constructor}: what `made` makes the same quantizer of.

    Raises:
        ValueError: a class that is none of the house's.
    """
    kind = type(quantizer)
    if KNOWN.get(kind.__name__) is not kind:
        raise ValueError(f"a {kind.__name__} cannot be described in a file: use one of {', '.join(KNOWN)}")
    return {"name": kind.__name__} | {name: getattr(quantizer, name) for name in _arguments(kind)}


def made(description: object) -> Quantizer:
    """The quantizer that a description speaks of.

    Raises:
        ValueError: an unknown name; arguments that are missing, unknown, or of another type or range.
    """
    if not isinstance(description, dict) or not isinstance(description.get("name"), str):
        raise ValueError(f"{description!r} describes no quantizer: it needs a name and the constructor's arguments")
    given = {name: value for name, value in description.items() if name != "name"}
    kind = KNOWN.get(description["name"])
    if kind is None:
        raise ValueError(f"quantizer {description['name']!r} is unknown: {', '.join(KNOWN)}")
    hints = _arguments(kind)
    if given.keys() != hints.keys():
        raise ValueError(f"{kind.__name__} takes {', '.join(hints)}, not {', '.join(sorted(given)) or 'nothing'}")
    for name, value in given.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{kind.__name__} has no {name}={value!r}")
    return kind(**given)


def _arguments(kind: type[Quantizer]) -> dict[str, Any]:
    hints = get_type_hints(kind.__init__)
    return {name: hints[name] for name in inspect.signature(kind).parameters}


def _fits(value: object, hint: Any) -> bool:
    """Whether a value of JSON has that type; a bool is no number, and a number is finite."""
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    return type(value) is (NoneType if hint is None else hint)
