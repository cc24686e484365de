"""A training step never makes the host wait for the device, which would idle meanwhile."""

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qat_lightning.commands.bench.steps import CaseBuilder
from qat_lightning.commands.bench.training import NO_METHOD, compose_run, compose_variants
from tests.commands.bench.configurations import composed

MASKING = "transformers/masking_utils.py"
"""It asks whether an attention mask has padding (`padding_mask.all()`), for the baseline as well."""


PACKAGE = Path(__file__).parents[3]

WAITING = {
    "aten::_local_scalar_dense",  # item(), float(), bool(), tolist() of one element
    "aten::item",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",  # the device knows the size of the result; the same is true of boolean indices
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::repeat_interleave.Tensor",
    "aten::allclose",
}
"""Operators whose result, or the shape of it, the host must know."""

MOVING = {"aten::_to_copy", "aten::copy_"}
"""Operators that wait when they copy from a device to the host."""


class Synchronizations(TorchDispatchMode):
    """`with Synchronizations() as found: …; found.places` → (operator, file:line) → how often.

    The place is the nearest line outside of torch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = (
            func._schema.name if not func._schema.overload_name else f"{func._schema.name}.{func._schema.overload_name}"
        )
        result = func(*args, **(kwargs or {}))
        boolean_index = func._schema.name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        )
        if (
            boolean_index
            or WAITING & {name, func._schema.name}
            or (func._schema.name in MOVING and _leaves(args, result))
        ):
            self.places[func._schema.name, _place()] += 1
        return result


def _leaves(args: Any, result: Any) -> bool:
    """Return whether a copy goes from a device to the host."""
    source = args[1] if len(args) > 1 and isinstance(args[1], torch.Tensor) else args[0]
    return source.device.type != "cpu" and result.device.type == "cpu"


def _place() -> str:
    torch_folder = str(Path(torch.__file__).parent)
    for frame in reversed(traceback.extract_stack()):
        if (
            not frame.filename.startswith(torch_folder)
            and frame.name != "__torch_dispatch__"
            and frame.name != "_place"
        ):
            path = Path(frame.filename)
            inside = path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE / "qat_lightning") else path
            return f"{'/'.join(inside.parts[-3:])}:{frame.lineno}"
    return "?"


@pytest.mark.parametrize(
    ("ask", "operator"),
    [
        (lambda x: x.sum().item(), "aten::_local_scalar_dense"),
        (lambda x: x[x > 0], "aten::index"),
        (lambda x: x.nonzero(), "aten::nonzero"),
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
