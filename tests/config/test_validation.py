"""Configurations: all experiments compose and pass the checks, mistakes are refused with the key."""

import inspect
import itertools
import os
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from lightning.pytorch import Trainer
from omegaconf import OmegaConf

from qat_lightning.commands.errors import error_message
from qat_lightning.config.command_line import check_words, put_debug_last
from qat_lightning.config.instantiate import create
from qat_lightning.config.run_config import in_one_process, read_run
from qat_lightning.config.schema import CONF, DECIDED_BY_RUN, ConfigError, TrainerConfig, as_plain
from qat_lightning.config.validation import check
from qat_lightning.quantization.quantizers.ternary import TernaryQuantizer
from tests.training.runs import resolved as composed

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
GROUPS = ["quantization", "losses", "intervention", "intervention_schedule", "optimizer", "lr_scheduler", "stages"]
DEBUG = sorted(path.stem for path in (CONF / "debug").glob("*.yaml"))


NEEDED = {"embed_minilm": ["data.path=x"], "rerank": ["data.path=x"], "ner": ["data.path=x", "data.num_labels=9"]}
"""Experiment → overrides that it has no default for."""


@pytest.mark.parametrize(("experiment", "debug"), zip(EXPERIMENTS, itertools.cycle(DEBUG)))
def test_experiment_composes_and_passes_the_checks_also_when_debugging(experiment, debug):
    words = [f"+experiment={experiment}", *NEEDED.get(experiment, ())]
    config = composed(*words)
    check(config)
    assert config.experiment == experiment
    config = composed(*put_debug_last([f"debug={debug}", *words]))
    check(config)
    assert not config.export.onnx
    if debug == "profile":
        assert config.stages.train.max_steps == config.stages.intervene.max_steps == 20


def test_the_five_experiments_of_the_first_release_exist():
    assert {"quickstart", "ti_minilm_l6", "ti_bert_base", "ti_bert_large", "ternarybert_base"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_of_a_group_composes(group):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for choice in sorted(path.stem for path in (CONF / group).glob("*.yaml")):
            assert group in compose("config", overrides=[f"{group}={choice}"])


MISTAKES = {
    "teacher=none intervention=none intervention_schedule=none": "losses.logits needs a teacher",
    "teacher=none losses=task": "intervention needs a teacher",
    "intervention=output": "intervention_schedule names intervention 'context'",
    "intervention_schedule=none": "intervention is set and intervention_schedule is not",
    "intervention=none": "intervention_schedule is set and intervention is not",
    "quantization=uniform_w4a8 quantization.weight.bits=9": "quantization.rules.layers.weight.bits=9",
    "quantization.activation.bits=1": ".bits=1",
    "quantization.weight.granularity=column": "weight.granularity='column'",
    "quantization.weight=7": "quantization.rules.layers.weight=7",
    "quantization.attention=7": "quantization.attention=7",
    "losses.hidden.weight=heavy": "losses.hidden.weight='heavy'",
    "losses.hidden.weight=inf": "losses.hidden.weight=inf",
    "losses.hidden.padding=sum": "losses.hidden.padding='sum'",
    "losses.hidden.site=middle": "unknown site 'middle'; sites: logits, hidden",
    "+losses.hidden.wieght=1": "losses.hidden.wieght is not an argument of FeatureMatchingLoss: did you mean 'weight'?",
    "+losses.new=7": "losses.new=7 must hold a _target_",
    "losses.hidden._target_=os.system": "losses.hidden._target_='os.system' is not allowed",
    "losses.hidden._target_=qat_lightning.distillation.losses.Mtach": "does not exist",
    "losses.logits.temperature=0": "losses.logits.temperature=0",
    "losses=unified_gamma losses.unified.gamma=1.5": "losses.unified.gamma=1.5",
    "losses=unified_gamma losses.unified.first.weight=-1": "losses.unified.first.weight=-1",
    "losses=unified_gamma losses.unified.second.weight=nan": "losses.unified.second.weight=nan",
    "optimizer.lr=fast": "optimizer.lr='fast'",
    "optimizer.lr=1e9": "optimizer.lr=1000000000.0",
    "optimizer.weight_decay=-0.1": "optimizer.weight_decay=-0.1",
    "+optimizer.maximize=true": "does not go down the slope",
    "+optimizer.differentiable=true": "optimizer (lr=",
    "optimizer=bert_adam optimizer.clip=-1": "optimizer.clip=-1",
    "lr_scheduler.warmup=2": "lr_scheduler.warmup=2",
    "~lr_scheduler._target_": "lr_scheduler=",
    "~intervention_schedule._target_": "intervention_schedule=",
    "intervention_schedule.shares.map=0": "intervention_schedule.shares=",
    "~data._target_": "data=",
    "data.batch_size=0": "data.batch_size=0",
    "data.batch_size=many": "data.batch_size='many'",
    "data.train_limit=0": "data.train_limit=0",
    "data.metrics.accuracy=null": "data.metrics=",
    "data.metrics=3": "data.metrics=3",
    "data.metric=speed": "data.metric='speed'",
    "model.student_layers=[[1,2],[3]]": "model.student_layers=",
    "stages.intervene.target_modules=[[1]]": "stages.intervene.target_modules=",
    "stages.intervene.target_modules=[]": "stages.intervene.target_modules=[]",
    "stages.train.max_steps=-1": "stages.train.max_steps=-1 must be 0 or more",
    "stages.train.max_epochs=null": "stages.train needs a budget",
    "stages.train.lr=1e9": "stages.train.lr=1000000000.0",
    "quantization=lsq_w2a8 quantization.step_size.weights.lr=1e9": "quantization.step_size.weights.lr=1000000000.0",
    "+quantization.weight.threshold=99": "weight.threshold=99",
    "quantization=lsq_w2a8 +quantization.weight.tail=2": "weight.tail=2",
    "trainer.devices=some": "trainer.devices='some'",
    "trainer.limit_val_batches=0": "trainer.limit_val_batches=0",
    "trainer.strategy=ddp_spawn": "trainer.strategy=ddp_spawn",
    "+callbacks.new=7": "callbacks.new=7",
    "+callbacks.new._target_=lightning.pytorch.callbacks.EarlyStoping": "callbacks.new._target_=",
}
"""Overrides → a part of the message."""


@pytest.mark.parametrize("overrides", MISTAKES)
def test_mistake_is_refused_with_its_key(overrides):
    with pytest.raises(ConfigError) as refused:
        check(composed(*overrides.split()))
    assert MISTAKES[overrides] in str(refused.value)


def test_every_argument_of_lightning_s_trainer_is_taken_or_has_a_replacement():
    arguments, taken = set(inspect.signature(Trainer).parameters), set(vars(TrainerConfig()))
    assert taken | DECIDED_BY_RUN.keys() == arguments
    assert taken.isdisjoint(DECIDED_BY_RUN)


@pytest.mark.parametrize("word", ["trainer.max_steps=3", "+trainer.max_steps=3"])
def test_an_argument_that_the_run_decides_is_refused_with_its_replacement(word):
    with pytest.raises(Exception, match="max_steps") as refused:
        check(composed(word))
    assert error_message(refused.value) == "trainer.max_steps is decided by the run: give stages.STAGE.max_steps"


def test_an_unknown_argument_of_the_trainer_is_refused_with_the_nearest():
    with pytest.raises(Exception, match="sync_batchnrm") as refused:
        composed("trainer.sync_batchnrm=true")
    assert "did you mean 'sync_batchnorm'?" in str(error_message(refused.value))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["losses=task", "+losses.extra.weight=???"], "losses.extra.weight must be given: add losses.extra.weight=…"),
        (["data=text"], "data.path, data.text_columns, data.num_labels must be given"),
    ],
)
def test_missing_values_are_named_together(overrides, message):
    with pytest.raises(ConfigError, match=message):
        composed(*overrides)


def test_create_makes_the_object():
    node = {"_target_": "qat_lightning.quantization.quantizers.TernaryQuantizer", "granularity": "per_channel"}
    quantizer = create(node, "quantization.weight")
    assert isinstance(quantizer, TernaryQuantizer)
    assert quantizer.granularity == "per_channel"


def test_depth_of_a_local_model_is_read_from_its_folder(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "num_hidden_layers": 2}')
    config = composed("model=bert_base", f"model.path={tmp_path}", "model.student_layers=[3]")
    with pytest.raises(ConfigError, match="0 to 1"):
        check(config)


def test_an_override_by_name_reaches_every_quantizer_that_shares_it():
    quantization = composed("quantization.activation.scale=static").quantization
    assert quantization.rules["layers"]["input"]["scale"] == quantization.attention["probs"]["scale"] == "static"
    assert (
        composed("quantization=lsq_w2a8", "quantization.weight.bits=5").quantization.rules["layers"]["weight"]["bits"]
        == 5
    )


def test_a_named_loss_can_be_taken_out():
    assert set(composed("~losses.output").losses) == {"logits", "hidden", "scores"}


@pytest.mark.parametrize(
    "word",
    ["data=[1]", "data=[null]", "data=[[digits],[text]]", "data=null", "data=true", "data=", "data='\0'", "data=1,2",
     "data=digits,3", "data=choice(digits,[1])", "data=range(1,3)", "+data=7", "data@other=7", "data/augmentation=3",
     "hydra/launcher=[1]", "hydra=3"],
)  # fmt: skip
def test_a_group_takes_names_of_options_alone(word):
    group = word.split("=")[0].lstrip("+").split("@")[0]
    with pytest.raises(ConfigError, match=f"the group {group} takes the name of an option"):
        check_words(["--multirun", word])


@pytest.mark.parametrize("word", ["intervention_schedule.shares={}", "losses.hidden={}"])
def test_an_empty_mapping_that_hydra_would_merge_into_what_is_there_is_refused(word):
    with pytest.raises(ConfigError, match=rf"'{word}' changes nothing.* with ~{word.split('=')[0]}\.KEY"):
        check_words([word])


def test_a_word_without_a_key_is_refused():
    with pytest.raises(ConfigError, match="'=3' names no key: give key=value or group=option"):
        check_words(["=3"])


@pytest.mark.parametrize(
    "word",
    ["data=digits", "callbacks=[analysis,hessian]", "callbacks=[analysis],[hessian]", "model=tiny,tiny_vit", "~model",
     "model=glob(tiny*)", "model={path: x}", "data='digits'", "seed=3", "threads=1,2", "losses.hidden.layers=[[0,1]]",
     "--cfg", "job", "-cd=[1]", "hydra/launcher=basic", "hydra.run.dir=a", "data/augmentation=crop"],
)  # fmt: skip
def test_all_else_is_left_to_hydra(word):
    check_words([word])


OPTIMIZERS = {
    "LBFGS": "LBFGS doesn't support per-parameter options",
    "SparseAdam": "SparseAdam does not support dense gradients",
    "Muon": "Muon only supports 2D parameters",
    "RMSprop, alpha: 7": "its first step does not go down the slope of the loss",
    "SGD, momentum: -1": "Invalid momentum value",
    "Adadelta": None, "Adafactor": None, "Adagrad": None, "Adamax": None, "NAdam": None, "RAdam": None,
    "SGD, momentum: 0.9, nesterov: true": None,
}  # fmt: skip


@pytest.mark.parametrize(("chosen", "refused"), OPTIMIZERS.items(), ids=OPTIMIZERS)
def test_an_optimizer_takes_a_step_before_anything_is_loaded(chosen, refused):
    config = composed("data=random_text", "model=tiny")
    config.optimizer = yaml.safe_load(f"{{lr: 0.01, _partial_: true, _target_: torch.optim.{chosen}}}")
    if refused is None:
        check(config)
        return
    with pytest.raises(ConfigError, match=f"optimizer .*{refused}"):
        check(config)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = composed("model=tiny", "data=random_text", "model.student_layers=[0,1]", "threads=1")
    OmegaConf.save(OmegaConf.create(as_plain(config)), folder / "config.yaml")
    return folder


def test_a_runs_configuration_is_read_with_what_is_given(run_folder):
    config = read_run(run_folder, ["threads=2", "model.student_layers=[1]"])
    assert (config.threads, config.model.student_layers) == (2, [1])


@pytest.mark.parametrize(
    ("word", "message"),
    {
        "threads.x.y=2": "^threads.x.y is not a key of this run: threads holds no keys, give threads=… as a",
        "model.student_layers.0=1": "holds no keys, give model.student_layers=… as a",
        "optimizer.betas.0=0.5": "holds no keys, give optimizer.betas=… as a",
        "teacher.none=1": "holds no keys, give teacher=… as a",
        "seed@other=3": "give key=value, with a key that the run has",
        "+seed=3": "give key=value, with a key that the run has",
        "~seed": "give key=value, with a key that the run has",
        "seed=1,2": "give key=value, with a key that the run has",
    }.items(),
)
def test_a_runs_configuration_takes_its_keys_alone(run_folder, word, message):
    with pytest.raises(ConfigError, match=message):
        read_run(run_folder, [word])


def test_a_folder_asks_for_no_processes_and_workers():
    config = composed("trainer.devices=64", "trainer.num_nodes=9", "trainer.strategy=ddp", "trainer.profiler=simple")
    config.data["num_workers"], config.teacher_cache, config.threads = 500, "/somewhere", 10**6
    limited = in_one_process(config)
    trainer = limited.trainer
    assert (trainer.devices, trainer.num_nodes, trainer.strategy, trainer.profiler) == (1, 1, "auto", None)
    assert (limited.data["num_workers"], limited.teacher_cache, limited.threads) == (0, None, os.cpu_count())
    assert config.trainer.devices == 64
    typed = in_one_process(config, ["trainer.devices=2", "data.num_workers=4", "threads=3"])
    assert (typed.trainer.devices, typed.data["num_workers"], typed.threads) == (64, 500, 10**6)
