"""Small calibrated students, for the tests of what is written of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qat_lightning.config.builders.models import build_quantized
from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.quantized_model import calibrate
from qat_lightning.quantization.quantizers.base import Quantizer
from tests.tiny_models import tiny_batch, tiny_model
from tests.training.runs import resolved

METHODS = ("ternary_w2a8", "uniform_w4a8", "lsq_w2a8 quantization.weight.bits=3", "binary_w1a8")


def student(family: str, method: str, *overrides: str, **changes: object) -> PreTrainedModel:
    """A tiny model with the quantizers of conf/quantization, calibrated, and not where training would leave any of them."""
    config = resolved("model.path=x", *f"quantization={method}".split(), *overrides)
    model = build_quantized(config, tiny_model(family, **changes))
    calibrate(model, [tiny_batch(family, seed) for seed in range(2)])
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Quantizer):
                for learned in module.parameters():
                    learned.mul_(1.07)
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module, family: str) -> Tensor:
    return torch.cat([SignalCapture(model)(tiny_batch(family, seed))["logits"][0].flatten() for seed in (5, 6)])
