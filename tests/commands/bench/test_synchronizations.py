"""A training step hands the device its work and asks it nothing: what the host waits for is time that the device idles."""

import pytest
import torch

from qat_lightning.commands.bench.cases import Workshop
from qat_lightning.commands.bench.variants import compose_plain, compose_variants
from tests.commands.bench.configurations import of_steps
from tests.commands.bench.synchronizations import Synchronizations

OF_TRANSFORMERS = "transformers/masking_utils.py"
"""It asks of each model's attention mask whether there is padding (`padding_mask.all()`), of the baseline's too."""


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
def test_the_count_sees_what_asks_the_device(ask, operator):
    x = torch.ones(3)
    with Synchronizations() as found:
        ask(x)
    ((seen, place),) = found.places
    assert seen == operator
    assert "test_synchronizations.py:" in place


def test_a_copy_to_the_host_counts_and_one_to_the_device_does_not():
    with Synchronizations() as found:
        torch.ones(3).to("meta").to(torch.float64)
    assert not found.places
    with Synchronizations() as found, pytest.raises(NotImplementedError):
        torch.ones(3, device="meta").cpu()
    assert not found.places, "nothing was copied"


def test_work_alone_counts_as_nothing():
    with Synchronizations() as found:
        x = torch.randn(4, 4, requires_grad=True)
        torch.where(x > 0, x.softmax(-1), 0.0)[torch.tensor([0, 1])].clamp(min=1e-3).log().sum().backward()
    assert not found.places


@pytest.mark.parametrize("name", ["everything", "unified", "lsq", "ti_map"])
def test_no_line_of_ours_makes_the_host_wait_in_a_training_step(name):
    with of_steps("model.architecture.num_hidden_layers=2", f"bench.only=[{name}]") as config:
        workshop = Workshop(compose_plain(config), (3, 8), torch.device("cpu"), "32-true")
        (variant,) = compose_variants(config).values()
    case = workshop.variant(variant)
    case.step()
    with Synchronizations() as found:
        case.forward().backward()
    assert not [place for place in found.places if OF_TRANSFORMERS not in place[1]], found.places
    assert found.places.total() <= 2, "one for each model, however many layers"
