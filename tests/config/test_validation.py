"""What is refused before data and models are loaded, and in which words."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from qat_lightning.config.command_line import check_words
from qat_lightning.config.instantiate import check_targets, create, suggest
from qat_lightning.config.run_config import in_one_process, read_run
from qat_lightning.config.schema import CONF, ConfigError, resolve
from qat_lightning.config.validation import check  # fmt: skip
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
GROUPS = [
    "model",
    "quantization",
    "losses",
    "intervention",
    "intervention_schedule",
    "optimizer",
    "lr_scheduler",
    "stages",
    "data",
]


def composed(*overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolve(compose("config", overrides=list(overrides)))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_composes_and_passes_the_checks(experiment):
    config = composed(f"+experiment={experiment}")
    check(config)
    assert config.experiment == experiment


def test_the_five_experiments_of_the_first_release_exist():
    assert {"quickstart", "ti_minilm_l6", "ti_bert_base", "ti_bert_large", "ternarybert_base"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("group", GROUPS)
def test_every_yaml_of_a_group_composes(group):
    for choice in sorted(path.stem for path in (CONF / group).glob("*.yaml")):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            assert group in compose("config", overrides=[f"{group}={choice}"])


def test_default_is_the_quickstart_model():
    config = composed()
    check(config)
    assert config.model.architecture["model_type"] == "vit"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["losses.hidden.layers=[[0,9]]"], r"losses\.hidden\.layers holds \[0, 9\].* student's can be 0 to 6"),
        (["losses.scores.layers=[[6,6]]"], r"losses\.scores\.layers .* can be 0 to 5"),
        (["intervention.map.at=[6]"], r"intervention\.map\.at holds 6.* 0 to 5"),
        (
            ["teacher=none", "intervention=none", "intervention_schedule=none"],
            r"losses\.logits needs a teacher.*losses=task",
        ),
        (["teacher=none", "losses=task"], r"intervention needs a teacher.*intervention=none"),
        (["intervention=output"], r"schedule names intervention 'context'.*choices: output"),
        (["intervention_schedule=none"], r"intervention is set and intervention_schedule is not"),
        (["intervention=none"], r"schedule is set and intervention is not"),
        (["quantization=uniform_w4a8", "quantization.weight.bits=9"], r"bits=9 .*choose 2 to 8"),
        (["quantization.activation.bits=1"], r"activation|input.*bits=1 .*choose 2 to 8"),
        (
            ["quantization.weight.granularity=column"],
            r"granularity='column'.*'per_tensor', 'per_channel'",
        ),
        (["losses.hidden.weight=heavy"], r"losses\.hidden\.weight='heavy'.*number"),
        (["losses.hidden.padding=sum"], r"losses\.hidden\.padding='sum'.*'ignore' or 'include'"),
        (["losses.hidden.site=middle"], r"unknown site 'middle'; sites: logits, hidden"),
        (
            ["+losses.hidden.wieght=1"],
            r"losses\.hidden\.wieght is not an argument of FeatureMatchingLoss: did you mean 'weight'\?",
        ),
        (["optimizer.lr=fast"], r"optimizer\.lr='fast'"),
        (["lr_scheduler.warmup=2"], r"warmup=2"),
        (["data.batch_size=0"], r"data\.batch_size=0 must be 1 or more"),
        (["data.batch_size=many"], r"data\.batch_size='many'.*integer"),
        (["stages.train.max_steps=-1"], r"stages\.train\.max_steps=-1 must be 0 or more"),
        (["stages.train.max_epochs=null"], r"stages\.train needs a budget"),
        (["intervention_schedule.shares.map=0"], r"shares=.*positive"),
        (["data.metrics.accuracy=null"], r"data\.metrics\.accuracy=None must hold a _target_"),
        (["data.metrics=null"], r"data\.metrics=null: it must be given"),
        (["data.metrics=3"], r"data\.metrics=3 must be a mapping, as \{accuracy: "),
        (["~data._target_"], r"data=.* must hold a _target_ and its arguments"),
        (["~intervention_schedule._target_"], r"schedule=.* must be null, or hold a _target_ and its arguments"),
        (["~lr_scheduler._target_"], r"scheduler=.* must hold a _target_"),
        (["model.student_layers=[[1,2],[3]]"], r"model\.student_layers\.0=\[1, 2\] must be 0 or more.* an integer"),
        (["stages.intervene.target_modules=[[1]]"], r"stages\.intervene\.target_modules\.0=\[1\] must be a name"),
        (["optimizer.lr=1e9"], r"optimizer\.lr=1000000000\.0 must be 0 or more, at most 10"),
        (["stages.train.lr=1e9"], r"stages\.train\.lr=1000000000\.0 must be 0 or more, at most 10"),
        (["optimizer.weight_decay=-0.1"], r"optimizer\.weight_decay=-0\.1 must be 0 or more"),
        (["+optimizer.maximize=true"], r"optimizer\.maximize=true makes the loss larger: leave it out"),
        (["+optimizer.differentiable=true"], r"optimizer \(lr=.*differentiable=True\): a leaf Variable"),
        (["optimizer=bert_adam", "optimizer.clip=-1"], r"optimizer\.clip=-1 must be 0 or more"),
        (
            ["quantization=lsq_w2a8", "quantization.step_size.weights.lr=1e9"],
            r"step_size\.weights\.lr=1000000000\.0 must be",
        ),
        (["+quantization.weight.threshold=99"], r"weight\.threshold=99 must be 0 to 4"),
        (["quantization=lsq_w2a8", "+quantization.weight.tail=2"], r"weight\.tail=2 is a share"),
        (["losses.hidden.weight=inf"], r"losses\.hidden\.weight=inf must be 0 or more"),
        (["losses.logits.temperature=0"], r"losses\.logits\.temperature=0 must be positive"),
        (["losses=unified_gamma", "losses.unified.gamma=1.5"], r"losses\.unified\.gamma=1\.5 must lie between 0 and 1"),
        (
            ["losses=unified_gamma", "losses.unified.first.weight=-1"],
            r"losses\.unified\.first\.weight=-1 must be 0 or more",
        ),
        (
            ["losses=unified_gamma", "losses.unified.second.weight=nan"],
            r"losses\.unified\.second\.weight=nan must be 0",
        ),
        (["callbacks=landscape", "callbacks.landscape.span=inf"], r"callbacks\.landscape\.span=inf must be a finite"),
        (["callbacks=early_stopping", "callbacks.early_stopping.patience=-1"], r"patience=-1 must be 0 or more"),
        (["stages.intervene.target_modules=[]"], r"stages\.intervene\.target_modules=\[\] quantizes nothing"),
        (["trainer.profiler=xla"], r"trainer\.profiler='xla' is unknown: choices: advanced, pytorch, simple"),
        (["losses.hidden._target_=os.system"], r"losses\.hidden\._target_='os\.system' is not allowed"),
        (["losses.hidden._target_=qat_lightning.distillation.losses.Mtach"], r"does not exist"),
    ],
)
def test_mistake_is_refused_in_words(overrides, words):
    with pytest.raises(ConfigError, match=words):
        check(composed(*overrides))


def test_missing_value_is_named_with_the_override_that_gives_it():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=["+losses.extra.weight=???"])
    with pytest.raises(ConfigError, match=r"losses\.extra\.weight must be given: add losses\.extra\.weight=…"):
        resolve(config)


def test_all_that_a_text_set_needs_is_asked_for_at_once():
    with pytest.raises(
        ConfigError, match=r"data\.path, data\.text_columns, data\.num_labels must be given: add data\.path=…"
    ):
        composed("data=text")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "qat_lightning.commands.cli.os.system",
        "qat_lightning.config.importlib.import_module",
        "qat_lightning.config.Path",
        "qat_lightning.config.instantiate",
        "lightning.pytorch.utilities.rank_zero.log",
        "torch.optim.Adam.__class__",
        "torch.load",
        7,
    ],
)
def test_target_is_judged_by_where_it_is_really_defined(target):
    with pytest.raises(ConfigError, match=r"not allowed|does not exist"):
        check_targets({"_target_": target}, "losses.bad")


def test_nested_target_is_checked_too():
    node = {
        "_target_": "qat_lightning.distillation.losses.FeatureMatchingLoss",
        "site": "hidden",
        "distance": {"_target_": "os.getcwd"},
    }
    with pytest.raises(ConfigError, match=r"losses\.x\.distance\._target_='os\.getcwd'"):
        create(node, "losses.x")


def test_create_builds_what_is_allowed():
    quantizer = create(
        {"_target_": "qat_lightning.quantization.quantizers.TernaryQuantizer", "granularity": "per_channel"},
        "quantization.weight",
    )
    assert isinstance(quantizer, TernaryQuantizer)
    assert quantizer.granularity == "per_channel"


def test_suggestion_names_the_nearest_and_all():
    assert suggest("wieght", ["weight", "site"]) == "did you mean 'weight'? choices: site, weight"


def test_depth_of_a_local_model_is_read_from_its_folder(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "num_hidden_layers": 2}')
    config = composed("model=bert_base", f"model.path={tmp_path}", "losses.hidden.layers=[[3,3]]")
    with pytest.raises(ConfigError, match="student's can be 0 to 2"):
        check(config)


def test_an_override_by_name_reaches_every_quantizer_that_shares_it():
    config = composed("quantization.activation.scale=static")
    assert config.quantization.rules["layers"]["input"]["scale"] == "static"
    assert config.quantization.attention["probs"]["scale"] == "static"


def test_a_named_loss_can_be_taken_out():
    assert set(composed("~losses.output").losses) == {"logits", "hidden", "scores"}
    assert composed().losses["output"]["site"] == "attention.output"


@pytest.mark.parametrize(
    "word",
    ["data=[1]", "data=[null]", "data=[[digits],[text]]", "data=null", "data=true", "data=", "data='\0'", "data=1,2",
     "data=digits,3", "data=choice(digits,[1])", "data=range(1,3)", "+data=7", "data@other=7"],
)  # fmt: skip
def test_a_group_takes_names_of_options_alone(word):
    with pytest.raises(ConfigError, match=r"the group data takes the name of an option.*choices: cifar10, .*digits"):
        check_words(["--multirun", word])


@pytest.mark.parametrize("word", ["data/augmentation=3", "hydra/launcher=[1]", "hydra=3"])
def test_so_do_groups_within_groups_and_those_of_hydra(word):
    with pytest.raises(ConfigError, match=f"the group {word.split('=')[0]} takes"):
        check_words([word])


@pytest.mark.parametrize("word", ["intervention_schedule.shares={}", "losses.hidden={}"])
def test_an_empty_mapping_that_hydra_would_merge_into_what_is_there_is_refused(word):
    with pytest.raises(ConfigError, match=rf"'{word}' changes nothing.* with ~{word.split('=')[0]}\.KEY"):
        check_words([word])


OPTIMIZERS = {
    "LBFGS": "LBFGS doesn't support per-parameter options",
    "SparseAdam": "SparseAdam does not support dense gradients",
    "Muon": "Muon only supports 2D parameters",
    "RMSprop, alpha: 7": "its first step does not go down the slope of the loss",
    "SGD, momentum: -1": "Invalid momentum value",
    "Adadelta": None,
    "Adafactor": None,
    "Adagrad": None,
    "Adamax": None,
    "NAdam": None,
    "RAdam": None,
    "SGD, momentum: 0.9, nesterov: true": None,
}


@pytest.mark.parametrize(("chosen", "refused"), OPTIMIZERS.items(), ids=OPTIMIZERS)
def test_an_optimizer_takes_a_step_before_anything_is_loaded(chosen, refused):
    node = yaml.safe_load(f"{{lr: 0.01, _partial_: true, _target_: torch.optim.{chosen}}}")
    config = replace(composed("data=random_text", "model=tiny"), optimizer=node)
    if refused is None:
        check(config)
        return
    with pytest.raises(ConfigError, match=f"optimizer .*{refused}"):
        check(config)


@pytest.mark.parametrize(
    "word",
    ["data=digits", "callbacks=[analysis,hessian]", "callbacks=[analysis],[hessian]", "model=tiny,tiny_vit", "~model",
     "model=glob(tiny*)", "model={path: x}", "data='digits'", "seed=3", "threads=1,2", "losses.hidden.layers=[[0,1]]",
     "--cfg", "job", "-cd=[1]", "hydra/launcher=basic", "hydra.run.dir=a", "data/augmentation=crop"],
)  # fmt: skip
def test_all_else_is_left_to_hydra(word):
    check_words([word])


def test_a_word_without_a_key_is_told():
    with pytest.raises(ConfigError, match="'=3' names no key: give key=value or group=option"):
        check_words(["=3"])


def run_folder(folder: Path) -> Path:
    config = composed("model=tiny", "data=random_text", "model.student_layers=[0,1]", "threads=1")
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    return folder


def test_a_runs_configuration_is_read_with_what_is_given(tmp_path):
    config = read_run(run_folder(tmp_path), ["threads=2", "model.student_layers=[1]"])
    assert (config.threads, config.model.student_layers) == (2, [1])


@pytest.mark.parametrize(
    ("word", "whole"),
    [
        ("threads.x=2", "threads"),
        ("threads.x.y=2", "threads"),
        ("model.student_layers.0=1", "model.student_layers"),
        ("optimizer.betas.0=0.5", "optimizer.betas"),
        ("teacher.none=1", "teacher"),
    ],
)
def test_a_part_of_a_value_of_a_run_is_no_key(tmp_path, word, whole):
    key = word.split("=")[0]
    with pytest.raises(ConfigError, match=f"^{key} is no key of this run: {whole} holds no keys, give {whole}=… as a"):
        read_run(run_folder(tmp_path), [word])


@pytest.mark.parametrize("word", ["seed@other=3", "+seed=3", "~seed", "seed=1,2"])
def test_a_runs_configuration_takes_keys_and_values_alone(tmp_path, word):
    with pytest.raises(ConfigError, match="give key=value, with a key that the run has"):
        read_run(run_folder(tmp_path), [word])


def test_a_folder_asks_for_no_processes_and_workers(tmp_path):
    asked = {"devices": 64, "num_nodes": 9, "strategy": "ddp", "profiler": "simple"}
    config = composed()
    config.trainer, config.threads = replace(config.trainer, **asked), 10**6
    config.data["num_workers"], config.teacher_cache = 500, "/somewhere"
    limited = in_one_process(config)
    told = {name: getattr(limited.trainer, name) for name in asked}
    assert told == {"devices": 1, "num_nodes": 1, "strategy": "auto", "profiler": None}
    assert (limited.data["num_workers"], limited.teacher_cache) == (0, None)
    assert limited.threads == os.cpu_count()
    assert config.trainer.devices == 64
    typed = in_one_process(config, ["trainer.devices=2", "data.num_workers=4", "threads=3"])
    assert (typed.trainer.devices, typed.data["num_workers"], typed.threads) == (64, 500, 10**6)
