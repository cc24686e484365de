"""The values of `quantization.budget` and `gate.bytes`: a size of the model, or a mean width of its weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from qat_lightning.config.schema import ConfigError

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "bits": 1}


@dataclass(frozen=True)
class Budget:
    """A limit in bytes of the whole packed model, or in bits for each weight whose width can be chosen, on average."""

    limit: float
    unit: Literal["bytes", "bits"]


def parse_size(text: str, key: str) -> float:
    """Read a size of the packed model, in bytes, which a key of the configuration gives.

    Raises:
        ConfigError: it is not a positive number with one of the units.

    >>> parse_size("8MiB", "gate.bytes")
    8388608.0
    """
    found = _parse(text)
    if found is None or found.unit == "bits":
        raise ConfigError(f"{key}={text!r} must be a size of the packed model, such as 6MiB or 800KB")
    return found.limit


def parse_budget(text: str) -> Budget:
    """Read the value of `quantization.budget`.

    Raises:
        ConfigError: it is not a positive number with one of the units.

    >>> parse_budget("6MiB"), parse_budget("2.5bits")
    (Budget(limit=6291456.0, unit='bytes'), Budget(limit=2.5, unit='bits'))
    """
    found = _parse(text)
    if found is None:
        raise ConfigError(
            f"quantization.budget={text!r} must be a size of the packed model, such as 6MiB or 800KB, or a mean width of its"
            " weights, such as 2.5bits"
        )
    return found


def _parse(text: str) -> Budget | None:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", text.strip())
    if found is None or found[2] not in UNITS or float(found[1]) == 0:
        return None
    return Budget(float(found[1]) * UNITS[found[2]], "bits" if found[2] == "bits" else "bytes")
