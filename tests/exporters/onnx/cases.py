"""Which models are exported, and batches for them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DistilBertForQuestionAnswering, PreTrainedModel

from qat_lightning.config.builders.models import build_quantized
from qat_lightning.models.quantized_model import calibrate
from tests.exporters.students import student
from tests.tiny_models import FAMILIES, tiny_batch, tiny_model
from tests.training.runs import resolved

GROUP = ("quantization.weight.granularity=per_group", "quantization.weight.group_size=8")
STATIC = "quantization.activation.scale=static"
BY_ROW = "quantization.activation.granularity=per_token"


@dataclass(frozen=True)
class Case:
    """A model of one layer, and how many of its products are of whole numbers: 6 linear, 2 of attention, a pooler."""

    family: str
    method: str
    whole: int
    overrides: tuple[str, ...] = ()
    lengths: tuple[int, ...] = (9, 6, 3)
    """Of the texts it is exported with."""
    types: bool = False
    answers: bool = False
    changes: dict[str, object] = field(default_factory=dict)


CASES = {
    "bert": Case("bert", "ternary_w2a8", 9, types=True),
    # as many rows as tokens as heads, and no padding: nothing of that may stay in the file
    "roberta": Case("roberta", "lsq_w2a8 quantization.weight.bits=3", 9, lengths=(4, 4, 4, 4)),
    "electra": Case("electra", "uniform_w8a8", 9),
    "distilbert": Case("distilbert", "uniform_w4a8", 8, answers=True),
    "vit": Case("vit", "binary_w1a8", 8, (STATIC,)),
    "deit": Case("deit", "ternary_w2a8", 0, (BY_ROW,)),
}
MANY = {
    f"{family} {method}": Case(family, method, whole, changes={"layers": 2})
    for family, pooler in zip(FAMILIES, (1, 1, 1, 1, 0, 0), strict=True)
    for method, whole in {
        "ternary_w2a8": 16 + pooler,
        "uniform_w4a8": 16 + pooler,
        "uniform_w8a8": 16 + pooler,
        "uniform_w8a8_asymmetric": 0,
        "binary_w1a8": 16 + pooler,
        "ternary_w2a16": 0,
        "none": 0,
    }.items()
}
SLOW = {
    **MANY,
    "ternary by row": Case("bert", "ternary_w2a8", 9, ("quantization.weight.granularity=per_channel",)),
    "ternary by group": Case("bert", "ternary_w2a8", 2, GROUP),
    "binary by group": Case("deit", "binary_w1a8", 2, GROUP),
    "static": Case("electra", "ternary_w2a8", 9, (STATIC,)),
    "inputs by row": Case("bert", "ternary_w2a8", 0, (BY_ROW,)),
    "4-bit activations": Case("bert", "ternary_w2a8", 9, ("quantization.activation.bits=4",)),
    "attention without quantizers": Case("bert", "ternary_w2a8", 7, ("quantization.attention=null",)),
    "no clip": Case("bert", "ternary_w2a8", 9, ("quantization.activation.clip=null",)),
    "answers, ternary": Case("distilbert", "ternary_w2a8", 8, answers=True),
    "types, roberta": Case("roberta", "ternary_w2a8", 9, types=True, changes={"type_vocab_size": 2}),
    "one row": Case("bert", "ternary_w2a8", 9, lengths=(5,)),
    "no embedding projection": Case("electra", "ternary_w2a8", 9, changes={"embedding_size": 32}),
}


def model_of(case: Case) -> PreTrainedModel:
    layers = case.changes.get("layers", 1)
    changes = {name: value for name, value in case.changes.items() if name != "layers"}
    changes["n_layers" if case.family == "distilbert" else "num_hidden_layers"] = layers
    if not case.answers:
        return student(case.family, case.method, *case.overrides, **changes)
    plain = DistilBertForQuestionAnswering(tiny_model(case.family, num_labels=2, **changes).config)
    model = build_quantized(resolved("model.path=x", f"quantization={case.method}", *case.overrides), plain)
    calibrate(model, [batch_of(case, seed) for seed in range(2)])
    return model.eval()


def batch_of(case: Case, seed: int, lengths: tuple[int, ...] = (11, 7, 2, 12, 5)) -> dict[str, Tensor]:
    """Another size, and padding."""
    batch = tiny_batch(case.family, seed, lengths)
    if case.types:
        draw = torch.Generator().manual_seed(seed)
        batch["token_type_ids"] = torch.randint(2, batch["input_ids"].shape, generator=draw)
    return batch | {"number": torch.arange(len(lengths))}
