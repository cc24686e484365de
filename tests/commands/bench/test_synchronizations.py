"""A training step never makes the host wait for the device, which would idle meanwhile."""

import pytest
import torch

from qat_lightning.commands.bench.steps import CaseBuilder
from qat_lightning.commands.bench.training import NO_METHOD, compose_run, compose_variants
from tests.commands.bench.configurations import composed
from tests.commands.bench.synchronizations import Synchronizations

MASKING = "transformers/masking_utils.py"
"""It asks whether an attention mask has padding (`padding_mask.all()`), for the baseline as well."""


@pytest.mark.parametrize(
    ("ask", "operator"),
    [
        (lambda x: x.sum().item(), "aten::_local_scalar_dense"),
        (lambda x: bool((x > 0).all()), "aten::_local_scalar_dense"),
        (lambda x: float(x[0]), "aten::_local_scalar_dense"),
        (lambda x: x[x > 0], "aten::index"),
        (lambda x: x.nonzero(), "aten::nonzero"),
        (lambda x: torch.equal(x, x), "aten::equal"),
        (lambda x: x.unique(), "aten::_unique2"),
        (lambda x: x.masked_select(x > 0), "aten::masked_select"),
    ],
)
def test_the_count_sees_operators_that_wait(ask, operator):
    x = torch.ones(3)
    with Synchronizations() as found:
        ask(x)
    ((seen, place),) = found.places
    assert seen == operator
    assert "test_synchronizations.py:" in place


def test_other_operators_do_not_count():
    with Synchronizations() as found:
        x = torch.randn(4, 4, requires_grad=True)
        torch.where(x > 0, x.softmax(-1), 0.0)[torch.tensor([0, 1])].clamp(min=1e-3).log().sum().backward()
        torch.ones(3).to("meta").to(torch.float64)
    assert not found.places


@pytest.mark.parametrize("name", ["everything", "unified", "lsq", "ti_map"])
def test_a_training_step_does_not_wait(name):
    with composed("training", "model.architecture.num_hidden_layers=2", f"bench.only=[{name}]") as config:
        builder = CaseBuilder(compose_run(config, NO_METHOD), (3, 8), torch.device("cpu"), "32-true")
        (variant,) = compose_variants(config).values()
    case = builder.variant(variant)
    case.step()
    with Synchronizations() as found:
        case.forward().backward()
    assert not [place for place in found.places if MASKING not in place[1]], found.places
    assert found.places.total() <= 2, "one for each model, for any number of layers"
