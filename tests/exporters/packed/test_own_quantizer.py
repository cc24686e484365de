"""A packed folder of quantizers from a user's package: found by the classes that the caller passes, never by an import."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qat_lightning.exporters import PackedError, load_packed, write_packed
from qat_lightning.models.convert import AttentionQuantization, QuantizationRule, quantize
from qat_lightning.quantization.quantizers import Quantizer, UniformQuantizer
from tests.exporters.students import logits
from tests.tiny_models import tiny_model


class Fives(Quantizer):
    """Five levels −2 … 2 of max|x|/2."""

    kind = "five-level"

    def __init__(self, width: float = 2.0) -> None:
        super().__init__(3)
        self.width = width

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale = x.detach().float().abs().amax().clamp(min=1e-9) / self.width
        return (x.detach().float() / scale).round().clamp(-2, 2) + 2, scale, torch.tensor(2.0)

    def levels(self) -> int:
        return 5


class DescribedFives(Fives):
    def spec(self) -> dict[str, Any]:
        return {"width": self.width}


def student(weight: type[Quantizer], activation: type[Quantizer]) -> torch.nn.Module:
    rules = [QuantizationRule("layers.*", partial(weight), partial(activation))]
    return quantize(tiny_model("bert"), rules, AttentionQuantization(query=activation)).eval()


def test_weights_load_without_the_class(tmp_path: Path) -> None:
    model = student(Fives, UniformQuantizer)
    write_packed(model, tmp_path / "packed")
    assert torch.equal(logits(load_packed(tmp_path / "packed"), "bert"), logits(model, "bert"))


def test_activations_load_with_the_class(tmp_path: Path) -> None:
    model = student(DescribedFives, DescribedFives)
    write_packed(model, tmp_path / "packed")
    with pytest.raises(PackedError, match=r"quantizers=\[DescribedFives\]"):
        load_packed(tmp_path / "packed")
    with pytest.raises(PackedError, match="DescribedFives"):
        load_packed(tmp_path / "packed", quantizers=[Fives])
    again = load_packed(tmp_path / "packed", quantizers=[DescribedFives])
    assert torch.equal(logits(again, "bert"), logits(model, "bert"))
    assert not any(
        isinstance(module, Quantizer) for module in load_packed(tmp_path / "packed", activations=False).modules()
    )


def test_activations_need_a_spec(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"spec\(\) of Fives"):
        write_packed(student(UniformQuantizer, Fives), tmp_path / "packed")
    assert not list(tmp_path.iterdir())
