import pytest
import torch

from qat_lightning.analysis.dynamic_range import dynamic_range
from qat_lightning.models.capture import SignalCapture
from tests.tiny_models import LAYERS, LENGTHS, pad_batch, tiny_batch, tiny_model


def test_by_hand() -> None:
    signal = torch.tensor([[[1.0, -2.0, 3.0], [0.0, 5.0, 4.0]], [[7.0, 7.0, 8.0], [100.0, -100.0, 0.0]]])
    signals, batch = {"attention.output": [signal]}, {"attention_mask": torch.tensor([[1, 1], [1, 0]])}
    assert dynamic_range(signals, batch)[0].tolist() == [[-2, 3], [0, 5], [7, 8]]
    assert dynamic_range(signals, {})[0].tolist() == [[-2, 3], [0, 5], [7, 8], [-100, 100]]


@torch.no_grad()
@pytest.mark.parametrize("site", ["attention.output", "hidden"])
def test_padding_does_not_count(site: str) -> None:
    model, batch = tiny_model("bert"), tiny_batch("bert")
    short, long = (dynamic_range(SignalCapture(model, [site])(g), g, site) for g in (batch, pad_batch(batch, 4)))
    assert len(short) == LAYERS + (site == "hidden")
    for layer, padded in zip(short, long, strict=True):
        assert layer.shape == (sum(LENGTHS), 2)
        assert torch.allclose(layer, padded, atol=1e-4)
        assert bool((layer[:, 0] < layer[:, 1]).all())


def test_a_map_has_no_hidden_units() -> None:
    with pytest.raises(ValueError, match=r"no hidden units"):
        dynamic_range({"attention.probs": []}, {}, "attention.probs")
