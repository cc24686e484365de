"""The loss on a plane: directions, grid, and weights that are what they were."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from qat_lightning.analysis.loss_landscape import Landscape, loss_landscape, random_direction
from qat_lightning.analysis.result_files import read_landscapes, read_spectra, write_landscapes, write_spectra
from qat_lightning.distillation.losses.logits import TaskLoss
from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.convert import QuantizationRule, quantize
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer
from tests.tiny_models import tiny_batch, tiny_model


def directions(parameters: list[torch.Tensor], seed: int = 0) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [random_direction(parameters, generator) for _ in range(2)]


def test_columns_have_the_norms_of_the_weights_and_vectors_stay() -> None:
    parameters = [torch.randn(5, 3) * 10, torch.randn(4), torch.randn(6, 2, 3), torch.tensor(2.0)]
    parameters[0][:, 1] = 0
    first, second = directions(parameters)
    for direction in (first, second):
        for index in (0, 2):
            assert torch.allclose(direction[index].norm(dim=0), parameters[index].norm(dim=0), rtol=1e-5)
        assert not direction[1].any()
        assert not direction[3].any()
        assert not direction[0][:, 1].any()
    assert not torch.equal(first[0], second[0])
    assert all(torch.equal(*pair) for pair in zip(first, directions(parameters)[0], strict=True))
    assert not torch.equal(first[0], directions(parameters, seed=1)[0][0])


def test_the_grid_is_the_loss_along_the_directions() -> None:
    weight = nn.Parameter(torch.randn(3, 2))
    target, kept = torch.randn(3, 2), weight.detach().clone()
    (one,), (other,) = directions([weight])
    landscape = loss_landscape(lambda: (weight - target).square().sum(), [weight], points=5, span=0.5)
    assert landscape.steps == [-0.5, -0.25, 0, 0.25, 0.5]
    for row, up in enumerate(landscape.steps):
        for column, across in enumerate(landscape.steps):
            expected = (kept + across * one + up * other - target).square().sum()
            assert landscape.losses[row][column] == pytest.approx(expected.item(), rel=1e-5)
    assert landscape.losses[2][2] == (kept - target).square().sum().item()


@torch.no_grad()
def test_ternary_model_is_restored() -> None:
    model, batch = (
        quantize(tiny_model("bert"), [QuantizationRule("layers.*", weight=TernaryQuantizer)]).eval(),
        tiny_batch("bert"),
    )
    observe = SignalCapture(model)
    before, state = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    landscape = loss_landscape(lambda: TaskLoss()(observe(batch), {}, batch), model.parameters(), points=3)
    assert landscape.losses[1][1] == TaskLoss()(observe(batch), {}, batch).item()
    assert len({loss for row in landscape.losses for loss in row}) == 9
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_weights_are_restored_after_an_error() -> None:
    weight = nn.Parameter(torch.tensor([[1e-3, 3e30], [-0.0, 7.0]]))
    kept, calls = weight.detach().clone(), []

    def loss() -> float:
        calls.append(weight.detach().clone())
        if len(calls) == 3:
            raise RuntimeError("stopped")
        return 0.0

    with pytest.raises(RuntimeError, match="stopped"):
        loss_landscape(loss, [weight], points=3)
    assert not torch.equal(calls[-1], kept)
    assert torch.equal(weight.detach().view(torch.int32), kept.view(torch.int32))


def test_refused_arguments() -> None:
    with pytest.raises(ValueError, match=r"points=1 must be 2 or more and span=1\.0 positive"):
        loss_landscape(lambda: 0.0, [], points=1)
    with pytest.raises(ValueError, match="span=-1"):
        loss_landscape(lambda: 0.0, [], span=-1)


def test_files_round_trip(tmp_path: Path) -> None:
    assert read_landscapes(tmp_path) is None
    assert read_spectra(tmp_path) is None
    given = {"student": Landscape([-1.0, 0.0, 1.0], [[1.0, 2.0, 0.1], [3.0, 4.0, 0.2], [5.0, math.inf, math.nan]])}
    write_landscapes(tmp_path, given, "a note")
    landscapes, about = read_landscapes(tmp_path)
    read = landscapes["student"]
    assert about == "a note"
    assert read.steps == given["student"].steps
    assert read.losses[:2] == given["student"].losses[:2]
    assert math.isnan(read.losses[2][1])
    assert "NaN" not in (tmp_path / "analysis" / "landscape.json").read_text()
    write_spectra(tmp_path, {"teacher": [[1.5, -0.1]], "student": []}, "another note")
    assert read_spectra(tmp_path) == ({"teacher": [[1.5, -0.1]], "student": []}, "another note")
    assert sorted(path.name for path in (tmp_path / "analysis").iterdir()) == ["hessian.json", "landscape.json"]
