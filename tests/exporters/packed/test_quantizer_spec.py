"""Quantizers as data, and back."""

import inspect
import json

import pytest
import torch

from qat_lightning.exporters.packed.quantizer_spec import KNOWN, describe, made
from qat_lightning.quantization.quantizers.affine import AffineQuantizer
from qat_lightning.quantization.quantizers.base import Quantizer
from qat_lightning.quantization.quantizers.binary import BinaryQuantizer
from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer
from tests.quantization.quantizers.cases import QUANTIZERS

OTHERS = [
    AffineQuantizer(3, "per_group", 1.5, "mean", "dynamic", 4),
    AffineQuantizer(5, "per_tensor", 1.5, "symmetric", "static"),
    BinaryQuantizer("per_group", None, 4),
    LSQQuantizer(5, "per_group", "step_size", False, False, "features", "kl", 0.1, 4),
    TernaryQuantizer("per_group", 1.0, 0.5, 4),
    UniformQuantizer(6, "per_tensor", 1.5, "static"),
]
"""None of their arguments is the default, as far as they go together."""


@pytest.mark.parametrize("quantizer", [*[make() for make in QUANTIZERS.values()], *OTHERS], ids=repr)
def test_what_is_described_is_made_again(quantizer: Quantizer) -> None:
    description = json.loads(json.dumps(describe(quantizer)))
    again = made(description)
    assert type(again) is type(quantizer)
    assert describe(again) == describe(quantizer) == description
    x = torch.randn(6, 8)
    quantizer.calibrate(x)
    again.calibrate(x)
    assert torch.equal(again(x), quantizer(x))


@pytest.mark.parametrize("kind", KNOWN.values(), ids=lambda kind: kind.__name__)
def test_every_argument_is_an_attribute(kind: type[Quantizer]) -> None:
    assert describe(kind()) == {"name": kind.__name__} | {
        name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()
    }


BINARY = {"name": "BinaryQuantizer", "granularity": "per_channel", "clip": 2.5, "group_size": None}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "os.system"}, r"quantizer 'os\.system' is unknown: AffineQuantizer, "),
        ({"name": "Quantizer"}, "quantizer 'Quantizer' is unknown"),
        ({"name": None}, "describes no quantizer"),
        ({"clips": 1.0}, "BinaryQuantizer takes granularity, clip, group_size, not clip, clips, "),
        ({"clip": "2.5"}, r"BinaryQuantizer has no clip='2\.5'"),
        ({"clip": True}, "BinaryQuantizer has no clip=True"),
        ({"clip": float("inf")}, "BinaryQuantizer has no clip=inf"),
        ({"clip": -1.0}, r"clip=-1\.0 must be positive"),
        ({"granularity": "column"}, "BinaryQuantizer has no granularity='column'"),
        ({"granularity": ["per_channel"]}, "BinaryQuantizer has no granularity="),
        ({"granularity": "per_group", "group_size": 4.0}, r"BinaryQuantizer has no group_size=4\.0"),
        ({"granularity": "per_group"}, "needs a group_size of 1 or more"),
    ],
)
def test_a_wrong_description(changed: dict, message: str) -> None:
    assert made(BINARY).granularity == "per_channel"
    with pytest.raises(ValueError, match=message):
        made(BINARY | changed)


@pytest.mark.parametrize("description", [None, [], "BinaryQuantizer", {}, {"name": "BinaryQuantizer"}])
def test_no_description(description: object) -> None:
    with pytest.raises(ValueError, match=r"describes no quantizer|takes granularity, clip, group_size, not nothing"):
        made(description)
