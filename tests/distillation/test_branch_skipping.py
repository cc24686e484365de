"""What an intervention leaves without a reader is not computed, and all else is what it would be, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qat_lightning.distillation import intervention
from qat_lightning.distillation.intervention import Intervention
from qat_lightning.distillation.losses.attention_map import AttentionMapLoss
from qat_lightning.distillation.losses.feature_matching import FeatureMatchingLoss, score_mean_squared_error
from qat_lightning.distillation.losses.logits import LogitDistillationLoss
from qat_lightning.models.capture import SignalCapture, Signals
from qat_lightning.models.convert import (
    AttentionQuantization,
    QuantizationRule,
    open_attention,
    open_attention_for,
    quantize,
)
from qat_lightning.models.module_paths import attention_paths, site_paths
from qat_lightning.models.quantized_model import calibrate
from qat_lightning.models.sites import AXES, FACTORS
from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer
from tests.tiny_models import HEADS, LAYERS, WIDTH, tiny_batch, tiny_model

QKV = ("attention.query", "attention.key", "attention.value")
MODES = {
    "O": Intervention(["attention.projection"], QKV),
    "C": Intervention(["attention.context"], QKV),
    "M": Intervention(["attention.probs"], QKV[:2]),
}
FUSED_MODES = {**MODES, "M": Intervention(["attention.probs"])}  # in which nothing can be detached for two of the three
LOSSES = {
    "logits": LogitDistillationLoss(),
    "scores": FeatureMatchingLoss("attention.scores", score_mean_squared_error),
    "map": AttentionMapLoss(),
    "blockwise map": AttentionMapLoss(implementation="blockwise"),
    "hidden": FeatureMatchingLoss("hidden"),
    "output": FeatureMatchingLoss("attention.output"),
    "context": FeatureMatchingLoss("attention.context"),
    "projection": FeatureMatchingLoss("attention.projection"),
}
TAUGHT = (*(site for site in AXES if site not in QKV and site != "logits"), *FACTORS)

ROWS, TOKENS = 3, 9
LINEAR = 2 * ROWS * TOKENS * WIDTH * WIDTH
PRODUCT = 2 * ROWS * TOKENS * TOKENS * WIDTH
"""Operations of one projection, and of one of the two products of attention, over all heads."""


def w2a8(model: nn.Module) -> nn.Module:
    eight = UniformQuantizer
    return quantize(
        model,
        [QuantizationRule("layers.*", TernaryQuantizer, eight)],
        AttentionQuantization(eight, eight, eight, eight),
    )


def learned(model: nn.Module) -> nn.Module:
    step = partial(LSQQuantizer, bits=4)
    made = quantize(model, [QuantizationRule("layers.*", step, step)], AttentionQuantization(step, step, step, step))
    calibrate(made, [tiny_batch("bert", seed=5)])
    return made


def models(family: str, make: object = w2a8) -> tuple[Signals, nn.Module]:
    """The teacher's signals, and a student."""
    with torch.no_grad():
        taught = SignalCapture(open_attention(tiny_model(family, seed=1)), TAUGHT)(tiny_batch(family))
    return taught, open_attention(make(tiny_model(family, seed=2)))  # type: ignore[operator]


def trained(
    student: nn.Module, taught: Signals, mode: Intervention, losses: Iterable[str], family: str
) -> dict[str, Tensor | None]:
    """The loss and every gradient, None where there is none."""
    chosen, batch = [LOSSES[name] for name in losses], tiny_batch(family)
    student.zero_grad()
    with mode.apply(student, taught):
        signals = SignalCapture(student, sorted({site for loss in chosen for site in loss.sites}))(batch)
    total = torch.stack([loss(signals, taught, batch) for loss in chosen]).sum()
    total.backward()
    return {name: parameter.grad for name, parameter in student.named_parameters()} | {"loss": total.detach()}


def assert_the_same(own: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> None:
    assert own.keys() == expected.keys()
    for name, tensor in own.items():
        other = expected[name]
        assert (tensor is None) is (other is None), name
        assert tensor is None or other is None or torch.equal(tensor, other), name


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch):
    """A context in which nothing is left out."""

    @contextmanager
    def compute_all() -> Iterator[None]:
        with monkeypatch.context() as patched:
            patched.setattr(intervention, "unread_left_out", lambda *given: nullcontext())
            yield

    return compute_all


def same_as_whole(student, taught, mode, losses, family, whole) -> None:
    own = trained(student, taught, mode, losses, family)
    own = {name: None if tensor is None else tensor.clone() for name, tensor in own.items()}
    with whole():
        assert_the_same(own, trained(student, taught, mode, losses, family))
    assert float(own["loss"]) > 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("mode", MODES)
def test_loss_and_gradients_are_those_of_computing_it_all(mode: str, loss: str, whole) -> None:
    taught, student = models("bert")
    same_as_whole(student, taught, MODES[mode], {"logits", loss}, "bert", whole)


@pytest.mark.parametrize("family", ["vit", "distilbert", "llama", "gpt2"])
@pytest.mark.parametrize("mode", MODES)
def test_of_every_shape_of_attention(family: str, mode: str, whole) -> None:
    taught, student = models(family)
    chosen = (FUSED_MODES if family == "gpt2" else MODES)[mode]
    for losses in (["hidden"], ["hidden", "scores"], ["hidden", "map"]):
        same_as_whole(student, taught, chosen, losses, family, whole)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("losses", [["hidden"], ["hidden", "scores"]], ids=str)
def test_learned_steps_get_the_same_gradients(mode: str, losses: list[str], whole) -> None:
    taught, student = models("bert", learned)
    same_as_whole(student, taught, MODES[mode], losses, "bert", whole)


@pytest.mark.parametrize("sites", [["attention.query"], ["attention.scores"], ["attention.value", "attention.context"]])
def test_of_any_sites_in_some_layers(sites: list[str], whole) -> None:
    taught, student = models("bert")
    with torch.no_grad():
        taught |= SignalCapture(open_attention(tiny_model("bert", seed=1)), QKV)(tiny_batch("bert"))
    same_as_whole(student, taught, Intervention(sites, at=[1]), ["hidden"], "bert", whole)


@pytest.mark.parametrize("mode", MODES)
def test_under_autocast(mode: str, whole) -> None:
    taught, student = models("bert")
    with torch.autocast("cpu", torch.bfloat16):
        same_as_whole(student, taught, MODES[mode], ["hidden"], "bert", whole)


@pytest.mark.parametrize("mode", ["O", "C"])
def test_attention_that_is_not_open_leaves_its_projections_out_as_well(mode: str, whole) -> None:
    taught, _ = models("bert", lambda model: model)
    closed = tiny_model("bert", seed=2)
    if mode == "C":
        open_attention_for(closed, ["attention.context"])  # lean
    else:
        assert closed.config._attn_implementation == "sdpa"
    same_as_whole(closed, taught, MODES[mode], ["hidden"], "bert", whole)


def operations(
    student: nn.Module, taught: Signals, mode: Intervention, sites: Sequence[str] = (), family: str = "bert"
) -> int:
    student.requires_grad_(False)  # the counter's own hooks cannot do with a transposed parameter
    with mode.apply(student, taught), FlopCounterMode(display=False) as counted:
        SignalCapture(student, sites)(tiny_batch(family))
    return int(counted.get_total_flops())


@pytest.mark.parametrize(
    ("mode", "sites", "left_out"),
    [
        ("O", ["hidden", "attention.output"], 4 * LINEAR + 2 * PRODUCT),
        ("C", ["hidden"], 3 * LINEAR + 2 * PRODUCT),
        ("M", ["hidden"], 2 * LINEAR + PRODUCT),
        ("O", ["attention.scores"], 2 * LINEAR + PRODUCT),  # value, its product and the projection
        ("C", ["attention.probs"], LINEAR + PRODUCT),
        ("M", ["attention.probs"], 0),
        ("O", FACTORS, 2 * LINEAR + 2 * PRODUCT),  # not even the scores
        ("C", ["attention.query"], 2 * LINEAR + 2 * PRODUCT),
        ("O", ["attention.projection"], 0),
    ],
)
def test_what_nobody_reads_is_not_computed(mode: str, sites: Sequence[str], left_out: int) -> None:
    taught, student = models("bert")
    all_of_it = operations(student, taught, Intervention(), sites)
    assert all_of_it - operations(student, taught, MODES[mode], sites) == LAYERS * left_out
    one = Intervention(MODES[mode].replace, MODES[mode].detach, at=[1])
    assert all_of_it - operations(student, taught, one, sites) == left_out


def test_a_fused_layer_is_computed_for_the_value_alone() -> None:
    taught, student = models("gpt2")
    all_of_it = operations(student, taught, Intervention(), family="gpt2")
    saved = {name: all_of_it - operations(student, taught, mode, family="gpt2") for name, mode in FUSED_MODES.items()}
    expected = {"O": 4 * LINEAR + 2 * PRODUCT, "C": 3 * LINEAR + 2 * PRODUCT, "M": PRODUCT}
    assert saved == {name: LAYERS * number for name, number in expected.items()}


@pytest.mark.parametrize(
    "place", ["core.query", "core.query_quantizer", "query", "query.weight_quantizer", "core.query_factor"]
)
def test_whoever_else_watches_is_served(place: str) -> None:
    """A hook of somebody's own, before the intervention or within it, makes the branch up to there run again."""
    taught, student = models("bert")
    expected, passed = [], []
    watched = student.get_submodule(f"{attention_paths(student)[0]}.{place}")
    for seen, mode in ((expected, Intervention()), (passed, MODES["O"])):
        with torch.no_grad(), mode.apply(student, taught):
            handle = watched.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
            SignalCapture(student)(tiny_batch("bert"))
            handle.remove()
    assert torch.equal(passed[0], expected[0])
    assert passed[0].any()


def test_a_hook_on_the_whole_attention_sees_the_students_own() -> None:
    taught, student = models("bert")
    attention, seen = student.get_submodule(attention_paths(student)[0]), []
    attention.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        SignalCapture(student)(tiny_batch("bert"))
        with MODES["O"].apply(student, taught):
            SignalCapture(student)(tiny_batch("bert"))
    assert all(torch.equal(*pair) for pair in zip(*seen, strict=True))


def test_a_step_size_in_its_warm_up_sees_all_that_it_would() -> None:
    """Else it would begin at another value where an intervention comes first."""
    values = []
    for mode in (Intervention(), MODES["O"]):
        taught, student = models("bert", learned)
        steps = [module for module in student.modules() if isinstance(module, LSQQuantizer)]
        for step in steps:
            step.following = True
        student.train()
        for dropout in (module for module in student.modules() if isinstance(module, nn.Dropout)):
            dropout.p = 0.0
        for attention in attention_paths(student):
            student.get_submodule(attention).dropout.p = 0.0
        with mode.apply(student, taught):
            SignalCapture(student)(tiny_batch("bert"))
        values.append([step.step_size.detach().clone() for step in steps])
    of_first = len(values[0]) // LAYERS  # before the teacher's signal changes what comes
    assert all(torch.equal(*pair) for pair in list(zip(*values, strict=True))[: of_first // 2])


def test_the_modules_are_themselves_again_afterwards() -> None:
    taught, student = models("bert")
    before = {name: dict(vars(module)) for name, module in student.named_modules()}
    own = SignalCapture(student)(tiny_batch("bert"))["logits"][0]
    with MODES["O"].apply(student, taught), MODES["M"].apply(student, taught):
        SignalCapture(student)(tiny_batch("bert"))
    with pytest.raises(KeyError), MODES["C"].apply(student, taught):
        raise KeyError("inside")
    assert all(vars(module).keys() == before[name].keys() for name, module in student.named_modules())
    assert torch.equal(SignalCapture(student)(tiny_batch("bert"))["logits"][0], own)


def test_one_within_another_changes_nothing_but_what_it_replaces(whole) -> None:
    taught, student = models("bert")

    def logits() -> Tensor:
        with (
            torch.no_grad(),
            MODES["C"].apply(student, taught),
            Intervention(["attention.output"], at=[1]).apply(student, taught),
        ):
            return SignalCapture(student)(tiny_batch("bert"))["logits"][0]

    own = logits()
    with whole():
        assert torch.equal(own, logits())


def test_from_batch_to_batch(whole) -> None:
    taught, student = models("bert")
    modes = [MODES["O"], Intervention(), MODES["M"], MODES["C"], Intervention(), MODES["O"]]
    for mode in modes:
        same_as_whole(student, taught, mode, ["hidden"], "bert", whole)


def test_a_compiled_student_computes_it_all() -> None:
    taught, student = models("bert")
    student.compile(backend="aot_eager")
    with MODES["O"].apply(student, taught):
        assert all("forward" not in vars(module) for module in student.modules())


def test_dropout_draws_the_same_for_the_same_seed() -> None:
    taught, student = models("bert")
    student.train()
    for mode in MODES.values():
        drawn = []
        for _ in range(2):
            torch.manual_seed(7)
            with torch.no_grad(), mode.apply(student, taught):
                drawn.append(SignalCapture(student)(tiny_batch("bert"))["logits"][0])
        assert torch.equal(*drawn)


def test_a_site_that_no_loss_reads_has_no_hook() -> None:
    _, student = models("bert")
    hooked: set[str] = set()
    names = {module: name for name, module in student.named_modules()}
    student.register_forward_pre_hook(
        lambda model, inputs: hooked.update(names[m] for m in model.modules() if m is not model and m._forward_hooks)
    )
    SignalCapture(student, ["attention.scores"])(tiny_batch("bert"))
    assert hooked == set(site_paths(student, "attention.scores"))


def test_heads_divide_the_width() -> None:
    """What the counts above take for granted."""
    assert WIDTH % HEADS == 0
