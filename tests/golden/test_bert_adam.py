"""BertAdam with both step counts, under a warm-up, with tensors that get no gradient for a while as in Teacher Intervention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from qat_lightning.config.instantiate import create
from qat_lightning.distillation.intervention_schedules import PiecewiseSchedule
from qat_lightning.training.lr_schedules import LinearWarmup
from qat_lightning.training.optimizers import BertAdam
from tests.golden import bert_adam
from tests.training.runs import composed

STEPS, PEAK, DECAY, CLIP = 60, 0.05, 0.1, 1.0
ORDER = PiecewiseSchedule({"output": 1, "context": 1, "map": 4})
SILENT = {"W_Q": (), "W_O": ("output",), "W_V": ("output", "context")}
"""The interventions under which a tensor gets no gradient (arXiv:2302.11812, released code)."""
FIGURES = {  # first and last factor of the peak rate; the release's ends and the shared beginnings were measured there
    "per_tensor": {"W_Q": (0.14, 0.02), "W_O": (0.14, 0.20), "W_V": (0.14, 0.39)},
    "shared": {"W_Q": (0.14, 0.02), "W_O": (0.93, 0.02), "W_V": (0.74, 0.02)},
}


def drawn() -> tuple[dict[str, np.ndarray], dict[str, list[np.ndarray | None]]]:
    draw = np.random.default_rng(3)
    weights = {name: draw.normal(size=(4, 3)) for name in SILENT}
    gradients = {
        name: [None if ORDER(step, STEPS) in silent else draw.normal(size=(4, 3)) for step in range(STEPS)]
        for name, silent in SILENT.items()
    }
    return weights, gradients


def made(weights: dict[str, np.ndarray], step_count: str) -> tuple[dict[str, torch.nn.Parameter], BertAdam, LambdaLR]:
    parameters = {name: torch.nn.Parameter(torch.from_numpy(weight.copy())) for name, weight in weights.items()}
    optimizer = BertAdam(parameters.values(), lr=PEAK, weight_decay=DECAY, clip=CLIP, step_count=step_count)
    rise = LinearWarmup(0.1)
    return parameters, optimizer, LambdaLR(optimizer, lambda step: rise(step, STEPS))


@pytest.mark.parametrize("resumed_at", [None, 15], ids=["whole", "resumed"])
@pytest.mark.parametrize("step_count", FIGURES)
def test_equals_the_release_with_either_step_count(step_count: str, resumed_at: int | None) -> None:
    weights, gradients = drawn()
    parameters, optimizer, scheduler = made(weights, step_count)
    for step in range(STEPS):
        if step == resumed_at:
            old = parameters, optimizer.state_dict(), scheduler.state_dict()
            parameters, optimizer, scheduler = made({n: p.detach().numpy() for n, p in old[0].items()}, step_count)
            optimizer.load_state_dict(old[1])
            scheduler.load_state_dict(old[2])
        for name, parameter in parameters.items():
            gradient = gradients[name][step]
            parameter.grad = None if gradient is None else torch.from_numpy(gradient.copy())
        optimizer.step()
        scheduler.step()
    for name, weight in weights.items():
        per_tensor = step_count == "per_tensor"
        expected, factors = bert_adam.trained(weight, gradients[name], PEAK, DECAY, CLIP, own_count=per_tensor)
        np.testing.assert_allclose(parameters[name].detach().numpy(), expected, rtol=1e-9)
        np.testing.assert_allclose((factors[0], factors[-1]), FIGURES[step_count][name], atol=0.005)


def test_without_an_intervention_both_counts_are_one() -> None:
    weights, gradients = drawn()
    ends = []
    for step_count in FIGURES:
        parameters, optimizer, scheduler = made({"W_Q": weights["W_Q"]}, step_count)
        for gradient in gradients["W_Q"]:
            parameters["W_Q"].grad = torch.from_numpy(gradient.copy())
            optimizer.step()
            scheduler.step()
        ends.append(parameters["W_Q"].detach().clone())
    assert torch.equal(*ends)


@pytest.mark.parametrize(("given", "counted"), [((), "per_tensor"), (("optimizer.step_count=shared",), "shared")])
def test_a_run_takes_the_step_count_that_is_given(given: tuple[str, ...], counted: str) -> None:
    optimizer = create(composed("optimizer=bert_adam", *given).optimizer, "optimizer")
    assert optimizer([torch.nn.Parameter(torch.ones(2))]).param_groups[0]["step_count"] == counted


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"step_count": "own"}, "step_count='own' is unknown: choose one of per_tensor, shared"),
        ({"lr": float("nan")}, "lr=nan must be 0 or more"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be 0 or more"),
        ({"clip": float("inf")}, "clip=inf must be 0 or more, and finite"),
        ({"betas": (0.9, 1.0)}, r"betas=\[0.9, 1.0\] must be two numbers"),
        ({"betas": (0.9,)}, r"betas=\[0.9\] must be two numbers"),
    ],
    ids=str,
)
def test_an_argument_out_of_its_range_is_refused(argument: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BertAdam([torch.nn.Parameter(torch.ones(2))], **argument)
