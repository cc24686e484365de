"""Which configuration each variant is, and which are refused."""

import pytest

from qat_lightning.commands.bench.variants import compose_plain, compose_variants
from qat_lightning.config.instantiate import create_all
from qat_lightning.config.schema import Teacher
from qat_lightning.distillation.losses.feature_matching import FeatureMatchingLoss
from qat_lightning.distillation.losses.logits import LogitDistillationLoss, TaskLoss
from tests.commands.bench.configurations import of_steps


@pytest.fixture(scope="module")
def variants():
    with of_steps("quantization=uniform_w8a8") as config:
        return list(config.bench["variants"]), compose_variants(config)


def kinds(config):
    return {name: type(loss) for name, loss in create_all(config.losses, "losses").items()}


def test_all_compose_in_the_order_of_the_configuration(variants):
    names, made = variants
    assert list(made) == names
    assert {"fine_tuning", "qat", "lsq", "distillation", "everything"} < set(names)


def test_losses_stand_alone_where_the_variant_is_of_one_loss(variants):
    _, made = variants
    assert kinds(made["qat"]) == {"task": TaskLoss}
    assert kinds(made["logits"]) == {"logits": LogitDistillationLoss}
    for name, site in (("hidden", "hidden"), ("scores", "attention.scores"), ("output", "attention.output")):
        assert kinds(made[name]) == {name: FeatureMatchingLoss}
        assert made[name].losses[name]["site"] == site
    assert list(made["map"].losses) == ["map"]
    assert set(made["unified"].losses) == {"logits", "hidden", "map", "output"}
    assert set(made["everything"].losses) == {"logits", "hidden", "scores", "output"}


def test_interventions_are_those_named_and_else_none(variants):
    _, made = variants
    for name, config in made.items():
        chosen = name.partition("ti_")[2]
        assert list(config.intervention) == ([chosen] if chosen else [])
        assert bool(config.intervention_schedule) == bool(chosen)


def test_the_command_s_quantization_holds_but_where_a_variant_chooses(variants):
    _, made = variants
    target = {name: config.quantization.weight for name, config in made.items()}
    assert target["everything"]["_target_"].endswith("UniformQuantizer")
    assert target["everything"]["bits"] == 8
    assert target["lsq"]["_target_"].endswith("LSQQuantizer")
    assert target["fine_tuning"] is target["distillation"] is None
    assert {name for name, config in made.items() if config.teacher is Teacher.none} == {"fine_tuning", "qat", "lsq"}


def test_all_have_the_command_s_model_with_random_weights():
    with of_steps("model.path=nobody/nothing", "model.pretrained=true", "bench.only=[qat]") as config:
        for made in (compose_plain(config), *compose_variants(config).values()):
            assert made.model.pretrained is False
            assert made.model.architecture == config.model.architecture


def test_a_user_s_own_variant():
    words = ["losses=logits", "quantization=ternary_w2a8", "quantization.weight.granularity=per_channel"]
    common = "bench.common=['optimizer=bert_adam','seed=7']"
    with of_steps(f"+bench.variants.mine={words}", "bench.only=[mine]", common) as config:
        (made,) = compose_variants(config).values()
    assert made.quantization.rules["layers"]["weight"]["granularity"] == "per_channel"
    assert made.optimizer["_target_"].endswith("BertAdam")
    assert made.seed == 7


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("bench.only=[everithing]", r"bench\.only holds 'everithing': did you mean 'everything'"),
        ("bench.only=everything", r"bench\.only='everything' a list of its names"),
        (
            "bench.variants.qat=['model=bert_base']",
            r"bench\.variants\.qat holds 'model=bert_base', but all have the same model",
        ),
        ("bench.variants.qat=['data.rows=8']", r"bench\.variants\.qat holds 'data\.rows=8'.*same inputs"),
        ("bench.variants.qat=['compile=true']", r"holds 'compile=true', but give bench\.compiled"),
        ("bench.variants.qat=['trainer.precision=bf16-true']", r"a step is timed without its Trainer"),
        ("bench.variants.qat=['teacher_cache=there']", r"its teacher computes: leave it out"),
        ("bench.variants.qat=['quantization.weight.clip=1']", r"without a quantization=… of its own"),
        ("bench.variants.qat='losses=task'", r"bench\.variants\.qat='losses=task' must be a list of overrides"),
        ("bench.variants.qat=['losses=tusk']", r"bench\.variants\.qat: .*losses/tusk"),
        ("bench.variants.qat=['loses.task.weight=2']", r"bench\.variants\.qat: .*loses"),
        ("bench.variants.qat=['teacher=none','losses=logits']", r"losses\.logits needs a teacher"),
        ("bench.variants=3", r"bench\.variants must be a mapping"),
    ],
)
def test_a_mistake_is_told_in_words(override, told):
    with of_steps(override) as config, pytest.raises(ValueError, match=told):
        compose_variants(config)
