"""A case's step is that of the model by itself; all cases share their weights."""

import copy

import pytest
import torch
from torch.nn import functional

from qat_lightning.commands.bench.cases import Workshop
from qat_lightning.commands.bench.variants import compose_plain, compose_variants
from qat_lightning.quantization.quantizers.base import Quantizer
from tests.commands.bench.configurations import of_steps

RATE = 0.125
WITHOUT_DROPOUT = (
    "+model.architecture.hidden_dropout_prob=0.0",
    "+model.architecture.attention_probs_dropout_prob=0.0",
)
CPU = torch.device("cpu")


def learning(rate):
    """Plain gradient descent without dropout."""
    words = [
        "optimizer._target_=torch.optim.SGD",
        f"optimizer.lr={rate}",
        "optimizer.weight_decay=0",
        "lr_scheduler=constant",
    ]
    return f"bench.common={[*words, '~optimizer.betas', '~optimizer.eps']}", *WITHOUT_DROPOUT


def workshop_of(*overrides):
    with of_steps(*overrides) as config:
        plain, variants = compose_plain(config), compose_variants(config)
    return Workshop(plain, (3, 8), CPU, config.bench["precision"]), variants


@pytest.fixture(scope="module")
def shared():
    return workshop_of("bench.only=[qat,everything,lsq,ti_map]")


def weights(workshop):
    return {name: parameter.detach().clone() for name, parameter in workshop.model.named_parameters()}


def test_the_baseline_is_a_plain_step_of_transformers_model():
    workshop, _ = workshop_of("bench.only=[]", *learning(RATE))
    model, case = copy.deepcopy(workshop.model).train(), workshop.baseline()
    assert model.config._attn_implementation == "sdpa"
    batch = workshop.batch()
    functional.cross_entropy(
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch["labels"]
    ).backward()
    expected = {name: parameter.detach() - RATE * parameter.grad for name, parameter in model.named_parameters()}
    case.step()
    torch.testing.assert_close(weights(workshop), expected, rtol=1e-5, atol=1e-6)


def test_fine_tuning_as_a_variant_is_the_baseline():
    """The same weights after a step, though one goes through Lightning's hooks and the losses."""
    after = []
    for name in ("baseline", "variant"):
        workshop, variants = workshop_of("bench.only=[fine_tuning]", *learning(RATE))
        before = weights(workshop)
        (workshop.baseline() if name == "baseline" else workshop.variant(variants["fine_tuning"])).step()
        after.append(weights(workshop))
        assert any(not torch.equal(before[name], value) for name, value in after[-1].items())
    torch.testing.assert_close(after[0], after[1], rtol=1e-5, atol=1e-6)


def test_a_variant_s_step_goes_down_its_own_loss():
    workshop, variants = workshop_of("bench.only=[everything]", *learning(0.002))
    case = workshop.variant(variants["everything"])
    teacher = {name: parameter.detach().clone() for name, parameter in workshop.teacher.named_parameters()}
    losses = []
    for _ in range(4):
        losses.append(case.forward().item())
        case.step()
    assert losses[-1] < losses[0]
    assert all(torch.equal(teacher[name], value) for name, value in workshop.teacher.named_parameters())


def test_all_cases_share_weights_and_the_optimizer_s_state(shared):
    workshop, variants = shared
    cases = [workshop.baseline(), *(workshop.variant(variant) for variant in variants.values())]
    for case in cases:
        case.step()
    own = {id(parameter) for parameter in workshop.model.parameters()}
    both = own | {id(parameter) for parameter in workshop.teacher.parameters()}
    for case in cases:
        held = {id(tensor) for tensor in case.kept() if isinstance(tensor, torch.nn.Parameter)}
        assert own <= held
    (state,) = workshop.states.values()
    learned = [parameter for parameter in state if id(parameter) not in both]
    assert all(parameter.dim() == 0 for parameter in learned), "LSQ's thresholds alone are a case's own"
    assert len(own) <= len(state) == len(own) + len(learned)
    assert not any(parameter.grad is not None for parameter in workshop.model.parameters())


def test_nothing_is_trained_at_a_rate_of_zero(shared):
    workshop, variants = shared
    before = weights(workshop)
    for variant in variants.values():
        workshop.variant(variant).step()
    torch.testing.assert_close(weights(workshop), before, rtol=0, atol=0)


def test_evaluation_has_no_dropout_and_training_has(shared):
    workshop, variants = shared
    case = workshop.variant(variants["everything"])
    first, second = (case.evaluate()["logits"][0] for _ in range(2))
    assert torch.equal(first, second)
    assert case.forward().item() != case.forward().item()


def test_kept_bytes_are_weights_twice_and_two_moments_by_adam(shared):
    """Student, teacher, mean and square: 4 × 4 bytes a parameter; the rest is small."""
    from qat_lightning.commands.bench.memory import storages

    workshop, variants = shared
    case = workshop.variant(variants["everything"])
    case.step()
    of_weights = 4 * sum(parameter.numel() for parameter in workshop.model.parameters())
    assert 4 * of_weights <= sum(storages(case.kept()).values()) < 4.2 * of_weights


def test_an_intervention_is_at_work(shared):
    """No gradient reaches queries and keys where the map is the teacher's."""
    workshop, variants = shared
    workshop.variant(variants["ti_map"])
    case, seen = workshop.variant(variants["ti_map"]), {}
    query = next(p for name, p in workshop.model.named_parameters() if name.endswith("query.weight"))
    value = next(p for name, p in workshop.model.named_parameters() if name.endswith("value.weight"))
    handles = [
        parameter.register_post_accumulate_grad_hook(lambda p, key=key: seen.update({key: p.grad.abs().max().item()}))
        for key, parameter in (("query", query), ("value", value))
    ]
    case.step()
    for handle in handles:
        handle.remove()
    assert seen["value"] > 0
    assert seen.get("query", 0) == 0


def test_fewer_layers_and_other_shapes(shared):
    assert shared[0].batch((2, 5))["input_ids"].shape == (2, 5)
    with of_steps("model.architecture.num_hidden_layers=3", "bench.only=[qat]") as config:
        deep = Workshop(compose_plain(config), (3, 8), CPU, "32-true")
        (qat,) = compose_variants(config).values()
    counts = [len(deep.variant(qat, layers=layers).kept()) for layers in (1, 2, None)]
    assert counts[0] < counts[1] < counts[2]
    assert len(deep.model.bert.encoder.layer) == 3


def test_images_and_bfloat16():
    with of_steps("model=tiny_vit", "bench.only=[everything]") as config:
        workshop = Workshop(compose_plain(config), (2,), CPU, "bf16-mixed")
        variants = compose_variants(config)
    assert workshop.batch()["pixel_values"].shape[0] == 2
    seen = []
    case = workshop.variant(variants["everything"])
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, given, output: seen.append((type(module), output.dtype)) if torch.is_tensor(output) else None
    )
    case.step()
    handle.remove()
    assert torch.bfloat16 in {dtype for kind, dtype in seen if issubclass(kind, torch.nn.Linear)}
    assert all(dtype != torch.float64 for _, dtype in seen)
    assert any(issubclass(kind, Quantizer) for kind, _ in seen)
