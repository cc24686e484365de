import pytest
import torch

from qat_lightning.analysis.layer_errors import layer_errors, sample_map, valid_tokens
from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.convert import open_attention
from tests.tiny_models import LAYERS, pad_batch, tiny_batch, tiny_model

MASK = {"attention_mask": torch.tensor([[1, 1], [1, 0]])}


def hidden(*values: list[list[float]]) -> dict[str, list[torch.Tensor]]:
    """One signal for each nested list: (B=2, N=2), width 1."""
    return {"hidden": [torch.tensor(value).unsqueeze(-1) for value in values]}


def test_mean_square_of_each_layer() -> None:
    teacher = hidden([[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]])
    student = hidden([[1.0, 2.0], [3.0, 0.0]], [[1.0, 1.0], [1.0, 3.0]])
    assert layer_errors(student, teacher, {}) == [(1 + 4 + 9) / 4, 4 / 4]


def test_padded_queries_and_keys_of_maps_do_not_count() -> None:
    teacher = {"attention.probs": [torch.zeros(2, 3, 2, 2)]}
    student = {"attention.probs": [torch.full((2, 3, 2, 2), float("inf"))]}
    for head in range(3):
        student["attention.probs"][0][0, head] = 2.0  # all four entries of the first sample count
        student["attention.probs"][0][1, head, 0, 0] = 5.0  # and this one of the second
    (error,) = layer_errors(student, teacher, MASK, "attention.probs")
    assert error == pytest.approx((4 * 4 + 25) / 5)


@torch.no_grad()
@pytest.mark.parametrize("site", ["hidden", "attention.probs", "attention.context", "attention.output"])
def test_more_padding_changes_nothing(site: str) -> None:
    student, teacher = (open_attention(tiny_model("bert", seed)) for seed in (0, 1))
    batch = tiny_batch("bert")
    short, long = (
        layer_errors(SignalCapture(student, [site])(given), SignalCapture(teacher, [site])(given), given, site)
        for given in (batch, pad_batch(batch, 4))
    )
    assert len(short) == LAYERS + (site == "hidden")
    assert min(short) > 0
    assert short == pytest.approx(long, rel=1e-4)


def test_refuses_models_that_cannot_be_compared() -> None:
    one, two = hidden([[0.0, 0.0], [0.0, 0.0]]), hidden([[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match=r"hidden: .*1 of shape \(2, 2, 1\).*2 of shape \(2, 2, 1\)"):
        layer_errors(one, two, {})
    with pytest.raises(ValueError, match="unknown site 'hiden'"):
        layer_errors(one, one, {}, "hiden")


def test_a_sample_loses_its_padding() -> None:
    maps = torch.arange(2 * 1 * 3 * 3.0).reshape(2, 1, 3, 3)
    batch = {"attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]])}  # padded on the left
    assert valid_tokens(batch, 1).tolist() == [1, 2]
    assert sample_map(maps, batch, 1).tolist() == [[[13.0, 14.0], [16.0, 17.0]]]
    assert sample_map(maps, {}, 1).shape == (1, 3, 3)
