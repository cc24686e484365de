import itertools
from functools import partial

import pytest
import torch

from qat_lightning.analysis.bit_allocation import WidthOption, choose_widths, measure_width_options
from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.convert import QuantizationRule
from qat_lightning.quantization.quantizers import AffineQuantizer, TernaryQuantizer
from tests.tiny_models import tiny_batch, tiny_model

RULES = [QuantizationRule("layers.*", weight=partial(AffineQuantizer, bits=2))]


@pytest.mark.parametrize("seed", range(8))
def test_choice_equals_the_best_of_all_combinations(seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 50, (4,), generator=drawn).tolist()
    options = {
        f"part{index}": [
            WidthOption(bits, elements, bits * elements, float(torch.rand((), generator=drawn)) / bits**3)
            for bits in (2, 3, 4, 8)
        ]
        for index, elements in enumerate(sizes)
    }
    budget = 3.3 * sum(sizes)
    possible = [
        chosen for chosen in itertools.product(*options.values()) if sum(option.bytes for option in chosen) <= budget
    ]
    best = min(possible, key=lambda chosen: sum(option.error for option in chosen))
    assert list(choose_widths(options, budget).values()) == [option.bits for option in best]


def test_budget_below_the_smallest_widths_is_refused() -> None:
    with pytest.raises(ValueError, match="budget=9"):
        choose_widths({"query": [WidthOption(2, 40, 10, 0.1), WidthOption(4, 40, 20, 0.0)]}, budget=9)


def test_error_of_a_weight_is_that_of_the_model_with_this_weight_alone_quantized() -> None:
    model, batch = tiny_model("bert").eval(), tiny_batch("bert")
    options = measure_width_options(model, RULES, [batch], widths=[2, 4])
    before = SignalCapture(model)(batch)["logits"][0]
    weight = model.get_submodule("bert.encoder.layer.1.intermediate.dense").weight
    quantizer = AffineQuantizer(bits=2)
    quantizer.calibrate(weight.detach())
    with torch.no_grad():
        weight.copy_(quantizer(weight))
        error = float((SignalCapture(model)(batch)["logits"][0] - before).square().mean())
    found = options["layers.1.feedforward.in"][0]
    assert found.error == pytest.approx(error, rel=1e-5)
    assert (found.bits, found.elements, found.bytes) == (2, weight.numel(), weight.numel() // 4 + 4)


def test_a_quantizer_with_a_fixed_width_is_left_out() -> None:
    rules = [QuantizationRule("embeddings.word", weight=TernaryQuantizer), *RULES]
    options = measure_width_options(tiny_model("bert"), rules, [tiny_batch("bert")], widths=[2])
    assert "embeddings.word" not in options
    with pytest.raises(ValueError, match="bits"):
        measure_width_options(tiny_model("bert"), rules[:1], [tiny_batch("bert")])
