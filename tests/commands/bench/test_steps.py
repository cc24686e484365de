"""The step of a case is that of its model alone; all cases share their weights."""

import copy

import pytest
import torch
from torch.nn import functional

from qat_lightning.commands.bench.measures import storage_bytes
from qat_lightning.commands.bench.steps import CaseBuilder
from qat_lightning.commands.bench.training import NO_METHOD, compose_run, compose_variants
from tests.commands.bench.configurations import composed

CPU = torch.device("cpu")


def sgd(rate):
    """Overrides of plain gradient descent without dropout."""
    words = ["optimizer._target_=torch.optim.SGD", f"optimizer.lr={rate}", "optimizer.weight_decay=0",
             "lr_scheduler=constant", "~optimizer.betas", "~optimizer.eps"]  # fmt: skip
    dropout = [f"+model.architecture.{name}_dropout_prob=0.0" for name in ("hidden", "attention_probs")]
    return f"bench.common={words}", *dropout


def build(*overrides, shape=(3, 8)):
    with composed("training", *overrides) as config:
        plain, variants = compose_run(config, NO_METHOD), compose_variants(config)
        return CaseBuilder(plain, shape, CPU, config.bench["precision"]), variants


@pytest.fixture(scope="module")
def shared():
    return build("bench.only=[qat,everything,lsq,ti_map]")


def weights(builder):
    return {name: parameter.detach().clone() for name, parameter in builder.model.named_parameters()}


def test_baseline_and_fine_tuning_are_plain_steps_of_transformers_model():
    rate = 0.125
    for variant in (False, True):
        builder, variants = build("bench.only=[fine_tuning]", *sgd(rate))
        model, batch = copy.deepcopy(builder.model).train(), builder.batch()
        assert model.config._attn_implementation == "sdpa"
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        functional.cross_entropy(logits, batch["labels"]).backward()
        expected = {name: parameter.detach() - rate * parameter.grad for name, parameter in model.named_parameters()}
        (builder.variant(variants["fine_tuning"]) if variant else builder.baseline()).step()
        torch.testing.assert_close(weights(builder), expected, rtol=1e-5, atol=1e-6)


def test_a_variant_minimizes_its_own_loss():
    builder, variants = build("bench.only=[everything]", *sgd(0.002))
    case, losses = builder.variant(variants["everything"]), []
    teacher = copy.deepcopy(builder.teacher.state_dict())
    for _ in range(4):
        losses.append(case.forward().item())
        case.step()
    assert losses[-1] < losses[0]
    assert all(torch.equal(teacher[name], value) for name, value in builder.teacher.state_dict().items())


def test_cases_share_weights_and_optimizer_state_and_change_neither(shared):
    """Student, teacher and Adam's two moments: 4 × 4 bytes a parameter. The learning rate is 0."""
    builder, variants = shared
    before = weights(builder)
    cases = {name: builder.variant(variant) for name, variant in variants.items()} | {"baseline": builder.baseline()}
    for case in cases.values():
        case.step()
    own = {id(parameter) for parameter in builder.model.parameters()}
    for case in cases.values():
        assert own <= {id(tensor) for tensor in case.persistent() if isinstance(tensor, torch.nn.Parameter)}
    (state,) = builder.states.values()
    both = own | {id(parameter) for parameter in builder.teacher.parameters()}
    learned = [parameter for parameter in state if id(parameter) not in both]
    assert all(parameter.dim() == 0 for parameter in learned), "only the step sizes of LSQ belong to one case"
    assert len(state) == len(own) + len(learned)
    assert all(parameter.grad is None for parameter in builder.model.parameters())
    torch.testing.assert_close(weights(builder), before, rtol=0, atol=0)
    size = 4 * sum(parameter.numel() for parameter in builder.model.parameters())
    assert 4 * size <= storage_bytes(cases["everything"].persistent()) < 4.2 * size


def test_training_has_dropout_and_evaluation_has_none(shared):
    builder, variants = shared
    case = builder.variant(variants["everything"])
    first, second = (case.evaluate()["logits"][0] for _ in range(2))
    assert torch.equal(first, second)
    assert case.forward().item() != case.forward().item()


def test_an_intervention_is_active(shared):
    """No gradient reaches the queries if the map is the teacher's."""
    builder, variants = shared
    case, seen = builder.variant(variants["ti_map"]), {}
    for key in ("query", "value"):
        weight = next(p for name, p in builder.model.named_parameters() if name.endswith(f"{key}.weight"))
        weight.register_post_accumulate_grad_hook(lambda p, key=key: seen.update({key: p.grad.abs().max().item()}))
    case.step()
    assert seen["value"] > 0
    assert seen.get("query", 0) == 0


def test_shapes_layers_images_and_bfloat16(shared):
    assert shared[0].batch((2, 5))["input_ids"].shape == (2, 5)
    deep, variants = build("model.architecture.num_hidden_layers=3", "bench.only=[qat]")
    counts = [len(deep.variant(variants["qat"], layers=layers).persistent()) for layers in (1, 2, None)]
    assert counts[0] < counts[1] < counts[2]
    images, variants = build("model=tiny_vit", "bench.only=[everything]", "bench.precision=bf16-mixed", shape=(2,))
    assert images.batch()["pixel_values"].shape[0] == 2
    dtypes = set()
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: dtypes.add(output.dtype) if torch.is_tensor(output) else None
    )
    images.variant(variants["everything"]).step()
    handle.remove()
    assert torch.bfloat16 in dtypes
    assert torch.float64 not in dtypes
