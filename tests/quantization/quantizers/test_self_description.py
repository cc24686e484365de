"""Every quantizer says what it is: kind, number of levels, and JSON that makes it again."""

import inspect
import json

import pytest
import torch
from torch import Tensor

from qat_lightning.quantization.quantizers import (
    AffineQuantizer,
    BinaryQuantizer,
    LSQQuantizer,
    Quantizer,
    TernaryQuantizer,
    UniformQuantizer,
)
from tests.quantization.quantizers.cases import QUANTIZERS

OTHERS = [
    AffineQuantizer(3, "per_group", 1.5, "mean", "dynamic", 4),
    AffineQuantizer(5, "per_tensor", 1.5, "symmetric", "static"),
    BinaryQuantizer("per_group", None, 4),
    LSQQuantizer(5, "per_group", "step_size", False, False, "features", "kl", 0.1, 4),
    TernaryQuantizer("per_group", 1.0, 0.5, 4),
    UniformQuantizer(6, "per_tensor", 1.5, "static"),
]
"""As many arguments as go together are not the default."""


@pytest.mark.parametrize("quantizer", [*[make() for make in QUANTIZERS.values()], *OTHERS], ids=repr)
def test_spec_makes_the_same_quantizer(quantizer: Quantizer) -> None:
    spec = json.loads(json.dumps(quantizer.spec()))
    again = type(quantizer).from_spec(spec)
    assert again.spec() == quantizer.spec() == spec
    assert spec.keys() == inspect.signature(type(quantizer)).parameters.keys()
    x = torch.randn(6, 8)
    quantizer.calibrate(x)
    again.calibrate(x)
    assert torch.equal(again(x), quantizer(x))


@pytest.mark.parametrize(
    ("quantizer", "kind", "levels"),
    [
        (TernaryQuantizer(), "ternary", 3),
        (BinaryQuantizer(), "binary", 2),
        (UniformQuantizer(bits=2), "uniform", 3),
        (UniformQuantizer(bits=8), "uniform", 255),
        (AffineQuantizer(bits=2), "affine", 4),
        (LSQQuantizer(bits=2), "LSQ", 3),
        (LSQQuantizer(bits=2, parametrization="step_size"), "LSQ", 4),
        (LSQQuantizer(bits=2, signed=False), "LSQ", 4),
    ],
)
def test_kind_and_levels(quantizer: Quantizer, kind: str, levels: int) -> None:
    assert (quantizer.kind, quantizer.levels()) == (kind, levels)
    codes, _, zero_point = quantizer.codes(torch.linspace(-3, 3, 999))
    assert len((codes - zero_point).unique()) <= levels


def test_a_quantizer_without_spec() -> None:
    class Sign(Quantizer):
        def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return x.sign() + 1, x.abs().amax(), torch.ones(())

    sign = Sign(bits=2)
    assert sign.kind == "Sign"
    assert torch.equal(sign(torch.tensor([-2.0, 0.0, 1.0])), torch.tensor([-2.0, 0.0, 2.0]))
    with pytest.raises(NotImplementedError, match="Sign"):
        sign.spec()


SPEC = {"granularity": "per_channel", "clip": 2.5, "group_size": None}


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (None, "granularity"),
        ({}, "granularity"),
        (SPEC | {"clips": 1.0}, "clips"),
        (SPEC | {"clip": "2.5"}, "clip='2.5'"),
        (SPEC | {"clip": True}, "clip=True"),
        (SPEC | {"clip": float("inf")}, "clip=inf"),
        (SPEC | {"clip": -1.0}, "clip=-1.0"),
        (SPEC | {"granularity": "column"}, "granularity='column'"),
        (SPEC | {"granularity": ["per_channel"]}, "granularity="),
        (SPEC | {"granularity": "per_group", "group_size": 4.0}, "group_size=4.0"),
        (SPEC | {"granularity": "per_group"}, "group_size"),
    ],
)
def test_refuses_a_wrong_spec(spec: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        BinaryQuantizer.from_spec(spec)
