"""Bytes of whole models against the papers' size arithmetic; the hash of a student."""

import copy
from functools import partial

import pytest
import torch
from transformers import BertConfig, BertModel

from qat_lightning.models.convert import QuantizationRule, quantize
from qat_lightning.models.size import bits, size, tensors_hash
from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer
from tests.tiny_models import tiny_model

MEBI = 2**20
TERNARY = [
    QuantizationRule("embeddings.word", weight=partial(TernaryQuantizer, "per_channel")),
    QuantizationRule("layers.*", weight=TernaryQuantizer, input=UniformQuantizer),
    QuantizationRule("pooler", weight=TernaryQuantizer),
]


def bert(**shape: int) -> BertModel:
    with torch.device("meta"):
        return BertModel(BertConfig(**shape))


def test_bert_base_is_fifteen_times_smaller():
    # arXiv:2009.12812 Table 1 says 28 MB and 14.9×; worked out: 417.6 MiB, 28.07 MiB, 14.88×
    counted = size(quantize(bert(), TERNARY))
    assert counted.float32 / MEBI == pytest.approx(417.6, abs=0.05)
    assert counted.packed / MEBI == pytest.approx(28.07, abs=0.005)
    assert counted.ratio == pytest.approx(14.88, abs=0.005)


@pytest.mark.slow
def test_bert_large_size():
    # worked out: 83.1 of 1278.5 MiB, 15.4×
    large = bert(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    counted = size(quantize(large, TERNARY))
    assert (counted.float32 / MEBI, counted.packed / MEBI) == pytest.approx((1278.5, 83.1), abs=0.05)
    assert counted.ratio == pytest.approx(15.4, abs=0.05)


def test_full_precision_model_packs_to_itself():
    counted = size(tiny_model("bert"))
    assert counted.packed == counted.float32
    assert counted.float32 == 4 * sum(parameter.numel() for parameter in tiny_model("bert").parameters())


def test_odd_number_of_codes_fills_the_last_byte():
    layer = torch.nn.Module()
    layer.linear = torch.nn.Linear(3, 3, bias=False)  # 9 codes of 2 bits: 18 bits, 3 bytes, and one scale
    from qat_lightning.quantization.modules.layers import QuantLinear

    layer.linear = QuantLinear(layer.linear, TernaryQuantizer())
    assert size(layer).packed == 3 + 4


def test_bits_name_each_kind_of_part():
    widths = bits(quantize(tiny_model("bert"), TERNARY))
    assert widths["embeddings.word"] == widths["attention.query"] == widths["feedforward.out"] == widths["pooler"] == 2
    assert widths["embeddings.position"] == widths["head"] == 32


def test_hash_is_of_the_tensors_alone():
    model = tiny_model("bert")
    same, other = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0].add_(1e-3)
    assert tensors_hash(model) == tensors_hash(same) != tensors_hash(other)
    assert len(tensors_hash(model)) == 64


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_table_that_the_head_reads_too_is_there_twice(name):
    """As codes for the embedding, and in float32 for the head, which reads the same weights unquantized."""
    model = tiny_model(name, tie_word_embeddings=True)
    plain = size(model)
    table = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is table
    quantize(model, [QuantizationRule("embeddings.word", weight=TernaryQuantizer)])
    assert size(model).float32 == plain.float32
    assert size(model).packed == plain.float32 + table.numel() // 4 + 4


def test_layers_of_other_widths_are_named():
    widths = {"layers.0.*": 8, "layers.1.feedforward.*": 3, "layers.1.*": 8}
    student = quantize(tiny_model("bert"), [QuantizationRule("layers.*", weight=LSQQuantizer)], None, widths)
    widths = bits(student)
    assert widths["attention.query"] == 8
    assert (widths["layers.0.feedforward.in"], widths["layers.1.feedforward.in"]) == (8, 3)
    assert "feedforward.in" not in widths
