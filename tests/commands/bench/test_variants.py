"""The configuration of each variant, and the refused ones."""

import pytest

from qat_lightning.commands.bench.variants import compose_plain, compose_variants
from qat_lightning.config.instantiate import create_all
from qat_lightning.config.schema import Teacher
from qat_lightning.distillation.losses.feature_matching import FeatureMatchingLoss
from qat_lightning.distillation.losses.logits import LogitDistillationLoss, TaskLoss
from tests.commands.bench.configurations import composed


@pytest.fixture(scope="module")
def variants():
    with composed("training", "quantization=uniform_w8a8") as config:
        return list(config.bench["variants"]), compose_variants(config)


def kinds(config):
    return {name: type(loss) for name, loss in create_all(config.losses, "losses").items()}


def test_all_compose_in_the_order_of_the_configuration(variants):
    names, made = variants
    assert list(made) == names
    assert {"fine_tuning", "qat", "lsq", "distillation", "everything"} < set(names)


def test_variants_of_one_loss_have_no_other(variants):
    _, made = variants
    assert kinds(made["qat"]) == {"task": TaskLoss}
    assert kinds(made["logits"]) == {"logits": LogitDistillationLoss}
    for name, site in (("hidden", "hidden"), ("scores", "attention.scores"), ("output", "attention.output")):
        assert kinds(made[name]) == {name: FeatureMatchingLoss}
        assert made[name].losses[name]["site"] == site
    assert list(made["map"].losses) == ["map"]
    assert set(made["unified"].losses) == {"logits", "hidden", "map", "output"}
    assert set(made["everything"].losses) == {"logits", "hidden", "scores", "output"}


def test_only_variants_of_teacher_intervention_have_interventions(variants):
    _, made = variants
    for name, config in made.items():
        chosen = name.partition("ti_")[2]
        assert list(config.intervention) == ([chosen] if chosen else [])
        assert bool(config.intervention_schedule) == bool(chosen)


def test_variants_have_the_quantization_of_the_command_unless_they_choose_one(variants):
    _, made = variants
    target = {name: config.quantization.weight for name, config in made.items()}
    assert target["everything"]["_target_"].endswith("UniformQuantizer")
    assert target["everything"]["bits"] == 8
    assert target["lsq"]["_target_"].endswith("LSQQuantizer")
    assert target["fine_tuning"] is target["distillation"] is None
    assert {name for name, config in made.items() if config.teacher is Teacher.none} == {"fine_tuning", "qat", "lsq"}


def test_variants_have_the_model_of_the_command_with_random_weights():
    with composed("training", "model.path=nobody/nothing", "model.pretrained=true", "bench.only=[qat]") as config:
        for made in (compose_plain(config), *compose_variants(config).values()):
            assert made.model.pretrained is False
            assert made.model.architecture == config.model.architecture


def test_a_users_own_variant():
    words = ["losses=logits", "quantization=ternary_w2a8", "quantization.weight.granularity=per_channel"]
    common = "bench.common=['optimizer=bert_adam','seed=7']"
    with composed("training", f"+bench.variants.mine={words}", "bench.only=[mine]", common) as config:
        (made,) = compose_variants(config).values()
    assert made.quantization.rules["layers"]["weight"]["granularity"] == "per_channel"
    assert made.optimizer["_target_"].endswith("BertAdam")
    assert made.seed == 7


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("bench.only=[everithing]", "did you mean 'everything'"),
        ("bench.only=everything", r"bench\.only='everything'"),
        ("bench.variants.qat=['model=bert_base']", "'model=bert_base'"),
        ("bench.variants.qat=['data.rows=8']", r"'data\.rows=8'.*bench\.shape"),
        ("bench.variants.qat=['compile=true']", r"'compile=true'.*bench\.compiled"),
        ("bench.variants.qat=['trainer.precision=bf16-true']", r"bench\.precision"),
        ("bench.variants.qat=['teacher_cache=there']", "'teacher_cache=there'"),
        ("bench.variants.qat=['quantization.weight.clip=1']", r"'quantization\.weight\.clip=1'"),
        ("bench.variants.qat='losses=task'", r"bench\.variants\.qat='losses=task'"),
        ("bench.variants.qat=['losses=tusk']", r"bench\.variants\.qat: .*losses/tusk"),
        ("bench.variants.qat=['loses.task.weight=2']", r"bench\.variants\.qat: .*loses"),
        ("bench.variants.qat=['teacher=none','losses=logits']", r"losses\.logits"),
        ("bench.variants=3", r"bench\.variants"),
    ],
)
def test_a_mistake_is_refused(override, named):
    with composed("training", override) as config, pytest.raises(ValueError, match=named):
        compose_variants(config)
