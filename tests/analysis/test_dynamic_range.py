import pytest
import torch

from qat_lightning.analysis.dynamic_range import dynamic_range


def test_by_hand() -> None:
    signal = torch.tensor([[[1.0, -2.0, 3.0], [0.0, 5.0, 4.0]], [[7.0, 7.0, 8.0], [100.0, -100.0, 0.0]]])
    signals, batch = {"attention.output": [signal]}, {"attention_mask": torch.tensor([[1, 1], [1, 0]])}
    assert dynamic_range(signals, batch)[0].tolist() == [[-2, 3], [0, 5], [7, 8]]
    assert dynamic_range(signals, {})[0].tolist() == [[-2, 3], [0, 5], [7, 8], [-100, 100]]


def test_a_map_has_no_hidden_units() -> None:
    with pytest.raises(ValueError, match=r"no hidden units"):
        dynamic_range({"attention.probs": []}, {}, "attention.probs")
