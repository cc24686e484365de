"""A recomputed layer runs as in its first run, and all gradients stay the same, bit for bit."""

from __future__ import annotations

import copy
import gc
import weakref
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from qat_lightning.distillation.intervention import Intervention
from qat_lightning.distillation.losses.attention_map import AttentionMapLoss
from qat_lightning.distillation.losses.feature_matching import FeatureMatchingLoss, score_mean_squared_error
from qat_lightning.models.capture import SignalCapture, Signals
from qat_lightning.models.convert import (
    AttentionQuantization,
    QuantizationRule,
    checkpoint_activations,
    open_attention,
    quantize,
)
from qat_lightning.models.module_paths import attention_paths, layer_paths
from qat_lightning.models.quantized_model import calibrate
from qat_lightning.models.sites import AXES, FACTORS
from qat_lightning.quantization.modules.activation_checkpointing import in_checkpointed_layer
from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer
from qat_lightning.quantization.quantizers.uniform import UniformQuantizer
from tests.memory import Allocations
from tests.tiny_models import tiny_batch, tiny_model

EVERYTHING = {
    "hidden": FeatureMatchingLoss("hidden"),
    "scores": FeatureMatchingLoss("attention.scores", score_mean_squared_error),
    "output": FeatureMatchingLoss("attention.output"),
    "map": AttentionMapLoss(),
    "query": FeatureMatchingLoss("attention.residual"),
    "blockwise": AttentionMapLoss(implementation="blockwise"),
}


QKV = ("attention.query", "attention.key", "attention.value")
MODES = {
    "none": Intervention(),
    "O": Intervention(["attention.projection"], QKV),
    "M": Intervention(["attention.probs"], QKV[:2]),
}


def quantized(model: nn.Module, weight=TernaryQuantizer, operand=UniformQuantizer) -> nn.Module:
    attention = AttentionQuantization(operand, operand, operand, operand)
    return quantize(model, [QuantizationRule("layers.*", weight, operand)], attention)


def learned(model: nn.Module) -> nn.Module:
    step = partial(LSQQuantizer, bits=4)
    calibrate(quantized(model, step, step), [tiny_batch("bert", seed=5)])
    return model


def models(family: str, make=quantized) -> tuple[Signals, nn.Module]:
    """The teacher's signals, and a student."""
    sites = [*(site for site in AXES if site not in (*QKV, "logits")), *FACTORS]
    with torch.no_grad():
        signals = SignalCapture(open_attention(tiny_model(family, seed=1)), sites)(tiny_batch(family))
    return signals, open_attention(make(tiny_model(family, seed=2)))


def prepared(student: nn.Module, checkpointed: bool) -> nn.Module:
    if checkpointed:
        checkpoint_activations(student)
    return copy.deepcopy(student).train()  # as a run makes its student, with dropout


def gradients(
    student: nn.Module, teacher_signals: Signals, mode: Intervention, losses: list, family: str = "bert"
) -> dict[str, Tensor | None]:
    """The total loss and each gradient."""
    batch = tiny_batch(family)
    torch.manual_seed(3)
    with mode.apply(student, teacher_signals):
        signals = SignalCapture(student, sorted({site for loss in losses for site in loss.sites}))(batch)
    total = torch.stack([loss(signals, teacher_signals, batch) for loss in losses]).sum()
    del signals
    torch.manual_seed(4)  # what is drawn between the two passes changes nothing
    total.backward()
    return {name: parameter.grad for name, parameter in student.named_parameters()} | {"loss": total.detach()}


def compare(family: str, make, mode: Intervention, losses: list, following: bool = False) -> None:
    """Bit by bit."""
    made = []
    for checkpointed in (False, True):
        teacher_signals, student = models(family, make)
        teacher_signals["logits"] = [
            torch.randn(logits.shape) for logits in SignalCapture(student)(tiny_batch(family))["logits"]
        ]
        student = prepared(student, checkpointed)
        for step in (module for module in student.modules() if isinstance(module, LSQQuantizer)):
            step.following = following
        made.append(gradients(student, teacher_signals, mode, losses, family))
        made[-1] |= {f"{name} itself": parameter.detach() for name, parameter in student.named_parameters()}
        assert_plain(student)
    for name, expected in made[0].items():
        own = made[1][name]
        assert (own is None) is (expected is None), name
        assert own is None or torch.equal(own, expected), name


def assert_plain(student: nn.Module) -> None:
    """Assert that no hook stays on the modules."""
    for module in student.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize(
    ("family", "mode", "names"),
    [
        ("distilbert", "none", ["hidden"]),
        ("bert", "none", [*EVERYTHING]),
        ("bert", "O", [*EVERYTHING]),
        ("bert", "M", ["hidden"]),
        ("vit", "M", [*EVERYTHING]),
        ("llama", "M", [*EVERYTHING]),
    ],
)
def test_gradients_of_distillation_are_the_same(family: str, mode: str, names: list[str]) -> None:
    """Signals that are captured inside a layer carry their gradients into it."""
    compare(family, quantized, MODES[mode], [EVERYTHING[name] for name in names])


@pytest.mark.parametrize("following", [False, True])
@pytest.mark.parametrize("mode", ["none", "M"])
def test_gradients_of_learned_steps_are_the_same(mode: str, following: bool) -> None:
    compare("bert", learned, MODES[mode], [EVERYTHING["hidden"], EVERYTHING["scores"]], following)


def test_in_bfloat16_too() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        compare("bert", quantized, MODES["M"], [EVERYTHING["hidden"], EVERYTHING["scores"]])


def test_signals_are_captured_once() -> None:
    _, student = models("bert")
    student = prepared(student, True)
    signals = SignalCapture(student, AXES)(tiny_batch("bert"))
    counts = {site: len(tensors) for site, tensors in signals.items()}
    torch.stack(
        [tensor.clamp(min=-99).square().mean() for layers in signals.values() for tensor in layers]
    ).sum().backward()
    assert {site: len(tensors) for site, tensors in signals.items()} == counts
    assert set(counts.values()) == {1, 2, 3}  # logits; layers; layers and embeddings


def runs(student: nn.Module) -> list[str]:
    """Grows by a name for each run of a layer's first projection."""
    seen: list[str] = []
    for path in attention_paths(student):
        query = student.get_submodule(f"{path}.query")
        query.register_forward_hook(lambda module, inputs, output, path=path: seen.append(path))
    return seen


def test_layers_run_twice_in_training_and_once_in_evaluation() -> None:
    _, student = models("bert")
    student = prepared(student, True)
    seen, paths = runs(student), attention_paths(student)
    SignalCapture(student)(tiny_batch("bert"))["logits"][0].sum().backward()
    assert seen == [*paths, *reversed(paths)]
    seen.clear()
    SignalCapture(student.eval())(tiny_batch("bert"))["logits"][0].sum().backward()
    assert seen == paths


def test_a_removed_user_hook_runs_in_the_second_run() -> None:
    made = []
    for checkpointed in (False, True):
        _, student = models("bert")
        student = prepared(student, checkpointed)
        layer = student.get_submodule(f"{layer_paths(student)[1]}.intermediate")
        handle = layer.register_forward_hook(lambda module, inputs, output: output * 3)
        torch.manual_seed(0)
        logits = SignalCapture(student)(tiny_batch("bert"))["logits"][0]
        handle.remove()
        other = layer.register_forward_hook(lambda module, inputs, output: output * 0)
        logits.square().sum().backward()
        assert list(layer._forward_hooks) == [other.id]
        made.append([parameter.grad for parameter in student.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*made, strict=True))


def test_an_error_in_the_second_run_leaves_the_modules_as_they_are() -> None:
    teacher_signals, student = models("bert")
    student = prepared(student, True)
    again = False

    def fail(module: nn.Module, inputs: object) -> None:
        if again:
            raise KeyError("inside")

    student.get_submodule(f"{layer_paths(student)[0]}.output").register_forward_pre_hook(fail)
    with MODES["O"].apply(student, teacher_signals):
        loss = SignalCapture(student)(tiny_batch("bert"))["logits"][0].sum()
    again = True
    with pytest.raises(KeyError, match="inside"):
        loss.backward()
    assert sum(len(module._forward_hooks) for module in student.modules()) == 0
    assert not in_checkpointed_layer()


def step_peak(checkpointed: bool) -> int:
    """Return the peak of allocated bytes in one step."""
    student = quantized(tiny_model("bert", seed=2, num_hidden_layers=4, vocab_size=8))
    student = prepared(open_attention(student), checkpointed)
    batch = tiny_batch("bert", lengths=(20,) * 16)
    with Allocations() as made:
        SignalCapture(student, ["hidden"])(batch | {"input_ids": batch["input_ids"] % 8})["logits"][0].sum().backward()
    return made.peak


def test_the_peak_memory_of_a_step_is_much_lower() -> None:
    assert step_peak(True) < step_peak(False) * 0.6


def test_a_graph_without_a_backward_pass_is_freed() -> None:
    """Stored hooks keep no reference to the signals."""
    teacher_signals, student = models("bert")
    student = prepared(student, True)
    gc.collect()
    gc.disable()
    try:
        with MODES["M"].apply(student, teacher_signals):
            signals = SignalCapture(student, ["attention.scores", "attention.context"])(tiny_batch("bert"))
        watched = [weakref.ref(tensor) for layers in signals.values() for tensor in layers]
        del signals
        assert not any(reference() is not None for reference in watched)
    finally:
        gc.enable()


def test_a_quantizer_quantizes_the_same_input_again_in_the_second_run() -> None:
    rules = [QuantizationRule("layers.*.attention.query", input=UniformQuantizer)]
    compare("bert", lambda model: quantize(model, rules), Intervention(), [EVERYTHING["hidden"]])


def test_a_compiled_model_is_refused() -> None:
    _, student = models("bert")
    student = prepared(student, True)
    student.compile(backend="eager")
    with pytest.raises(ValueError, match="compile"):
        SignalCapture(student)(tiny_batch("bert"))
