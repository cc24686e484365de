"""Configurations that cannot work are refused before training, with the remedy."""

from pathlib import Path

import pytest
import torch
from lightning.fabric.loggers import tensorboard
from lightning.pytorch import Callback

from qat_lightning.commands.train.preflight import CHECKS, logged_names, preflight
from qat_lightning.commands.train.run import run
from qat_lightning.config.builders import training
from qat_lightning.config.builders.models import build_data, build_model
from qat_lightning.config.schema import ConfigError
from tests.training.runs import composed, planned, saved_tiny, small_run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A teacher that needs no stage of its own."""
    return saved_tiny(tmp_path_factory.mktemp("tiny") / "model")


LSQ = "quantization=lsq_w2a8"
PLAIN = ("intervention=none", "intervention_schedule=none")
QUERY = ("losses.output.site=attention.query", "intervention=output", "intervention_schedule=output")
RULE = "+quantization.rules.more={_target_:qat_lightning.models.convert.QuantizationRule,target_modules:cellar.*}"
GPT2 = ("model=tiny_gpt2", "data=random_tokens")
REFUSED: list[tuple[str, tuple[str, ...]]] = [
    # by the composed configuration alone
    ("no loss is left: give one of losses a weight above 0", ("losses=logits", "losses.logits.weight=0")),
    (r"losses\.scores\.weight=-1.* must be 0 or more", ("losses.scores.weight=-1",)),
    (r"step_size\.weights\.lr=-1.* must be 0 or more", (LSQ, "quantization.step_size.weights.lr=-1")),
    ("quantization.bits={'pooler': '4'}", (LSQ, "quantization.bits={pooler:'4'}")),
    ("gives 'pooler' 9: give a whole number from 1 to 8", (LSQ, "quantization.bits={pooler:9}")),
    # by the model and the data
    ("gpt2 model computes query, key and value in one layer.*choose intervention=without_map",
     (*GPT2, "intervention=map", "intervention_schedule=map", "losses=logits")),
    ("a gpt2 model has no site 'attention.query'", (*GPT2, *QUERY)),
    (r"losses\.unified: .*layers holds \[0, 7\]", ("losses.unified.first.layers=[[0,7]]", "losses=unified_gamma")),
    (r"intervention\.map: .*layer 6: the student's layers are 0 to 1", ("intervention.map.at=[6]",)),
    (r"losses\.tokens: .*language models", ("losses=token_scaled", *PLAIN)),
    ("the data holds token [12].., and the model knows 0 to 127: give the model's own", ("data.vocabulary_size=300",)),
    ("target_modules='cellar.*'", (RULE,)),
    ("no quantizer in parts 'layers.*.cellar'", ("stages.intervene.target_modules=[layers.*.cellar]",)),
    ("data.size=32, but the model has image_size=16", ("model=tiny_vit", "data=random_images", "data.size=32")),
    (r"model\.student_layers=\[0, 1, 2\] must name some .* 0 to 1", ("model.student_layers=[0,1,2]",)),
    (r"rows of 77 tokens are beyond .* 64 positions: give data\.max_length=64",
     ("model=tiny_llama", "data=random_tokens", "data.length=80", "losses=logits", *PLAIN)),
    ("part .*for weights, whose rows stay; give", (LSQ, "quantization.activation.granularity=per_token")),
    ("to which no part falls that an earlier", (LSQ, "quantization.bits={layers.*:8,layers.1.*:3}")),
    ("group_size=5 does not divide", ("quantization.weight.granularity=per_group", "quantization.weight.group_size=5")),
    (r"callbacks\.analysis\.k=0 must be 1 or more", ("callbacks=analysis", "callbacks.analysis.k=0")),
    (r"callbacks\.odd", ("+callbacks.odd={_target_:qat_lightning.quantization.quantizers.LSQQuantizer}",)),
    ("a bert model predicts no next token", ("data=random_tokens", "losses=logits")),
    ("set data.channels=3", ("model=tiny_vit", "data=random_images", "data.size=16", "data.channels=1")),
    (r"must name \[student, teacher\] pairs", ("losses=unified_gamma", "losses.unified.first.layers=[[0]]")),
    (r"data\.length=1 must be 2 or more", ("data.length=1",)),
    (r"limit_val_batches=0.001 of 2 batches is none: give 1 for one", ("trainer.limit_val_batches=0.001",)),
    (r"data\.metrics\.accuracy gives .* must give one number: set average=macro", ("data.metrics.accuracy.average=null",)),
    (r"data\.metrics\.other: Input tensor `preds` is expected to have 3 dimensions",
     ("+data.metrics.other={_target_: torchmetrics.text.Perplexity}",)),
    (r"hidden_act='glue' is unknown: did you mean 'gelu'", ("+model.architecture.hidden_act=glue",)),
    (r"model\.architecture: .*'initializer_range' expected float", ("+model.architecture.initializer_range=x",)),
    (r"model\.architecture: .*'vocab_size' expected int", ("model.architecture.vocab_size=null",)),
    (r"model\.architecture: .*'num_labels'", ("+model.architecture.num_labels=3",)),
    (r"losses\.map is nan for two rows of the data", ("losses=attention_map", "losses.map.temperature=1e-30")),
    ("the table of bits gives 'pooler' 1: bits=1 is outside the range of LSQQuantizer: choose 2 to 8",
     (LSQ, "quantization.bits={pooler:1}")),
    (r"callbacks\.hessian\.top=101 must be 1 or more, at most 100", ("callbacks=hessian", "callbacks.hessian.top=101")),
    (r"trainer\.devices and trainer\.num_nodes make 2 processes, and the validation rows are 1",
     ("data.validation_limit=1", "trainer.devices=2", "trainer.strategy=ddp")),
]  # fmt: skip
"""What the message holds, and the overrides."""


def callback(name: str, **arguments: str) -> str:
    """The override that adds one of Lightning's."""
    given = "".join(f", {key}: {value}" for key, value in arguments.items())
    return f"+callbacks.{name}={{_target_: lightning.pytorch.callbacks.{name}{given}}}"


def watch(monitor: str, **arguments: str) -> str:
    return callback("EarlyStopping", monitor=monitor, **arguments)


NO_TEACHER = "stages.teacher.max_steps=0"
CALLBACKS: list[tuple[str, tuple[str, ...]]] = [
    (r"callbacks\.EarlyStopping\.monitor='nope' is not logged in the teacher stage: choices: lr, train/loss, train/loss_task,"
     " val/accuracy", (watch("nope"),)),
    ("did you mean 'val/accuracy'?", (callback("ModelCheckpoint", monitor="val/acuracy"),)),
    ("is not logged in the teacher stage", (watch("train/loss_hidden"),)),
    ("is not logged in the intervene stage: .* val_assisted/accuracy", (watch("train/loss_hidden"), NO_TEACHER, "losses=logits")),
    ("is not logged in the train stage", (watch("val_assisted/accuracy"), NO_TEACHER)),
    ("is not logged in the teacher stage", (watch("lr-AdamW"),)),
    (r"callbacks\.Timer: .*duration", (callback("Timer", duration="soon"),)),
    (r"callbacks\.RichProgressBar: .*`enable_progress_bar=False` but found", (callback("RichProgressBar"),)),
    (r"callbacks\.ModelCheckpoint, callbacks\.again: Found more than one stateful callback",
     (callback("ModelCheckpoint"), "+callbacks.again=${callbacks.ModelCheckpoint}")),
    (r"callbacks\.BatchSizeFinder would change .* give data\.batch_size=…", (callback("BatchSizeFinder"),)),
    (r"callbacks\.LearningRateFinder would change .* give optimizer\.lr=…", (callback("LearningRateFinder"),)),
]  # fmt: skip
"""The same, in runs whose teacher is given."""


def refused(folder: Path, message: str, *overrides: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_run(folder / "run", *overrides)
    assert not (folder / "run").exists()


@pytest.mark.parametrize(("message", "overrides"), REFUSED)
def test_refused_without_a_trace(tmp_path, message, overrides):
    refused(tmp_path, message, *overrides)


@pytest.mark.parametrize(("message", "overrides"), CALLBACKS)
def test_a_callback_that_cannot_work_is_refused_without_a_trace(tmp_path, tiny, message, overrides):
    refused(tmp_path, message, f"model.path={tiny}", *overrides)


def test_a_rehearsal_leaves_no_trace(tmp_path):
    """The run goes the same way with it: nothing is drawn, the model's attention stays as it was."""
    run = planned(composed())
    model = build_model(run.config, run.data)
    before, drawn = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    preflight(run, model)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model.config._attn_implementation != "qat_core"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "overrides",
    [
        (watch("train/loss"),),
        (watch("nope", strict="false", mode="max"),),
        (watch("train/loss_hidden"), "stages.teacher.max_steps=0"),
        (watch("lr-AdamW/pg1", mode="min"), callback("LearningRateMonitor")),
        ("callbacks=early_stopping",),
        (callback("Timer", duration="'00:00:01:00'"),),
    ],
)
def test_what_is_logged_can_be_watched(tiny, overrides):
    """Each stage of a whole run gives its callbacks these names: `test_names_that_can_be_watched_are_those_logged`."""
    config = composed(f"model.path={tiny}", *overrides)
    run = planned(config)
    for name in ("monitored values", "trainers and callbacks"):
        CHECKS[name](run, None)


def test_names_that_can_be_watched_are_those_logged(tmp_path, monkeypatch):
    seen: dict[str, set[str]] = {}

    class Watching(Callback):
        def on_validation_end(self, trainer, module):
            if trainer.state.fn == "fit":
                seen.setdefault(module.stage, set(trainer.callback_metrics)).intersection_update(
                    trainer.callback_metrics
                )

    build = training.build_callbacks
    monkeypatch.setattr(training, "build_callbacks", lambda *given: [*build(*given), Watching()])
    config, names = composed(), {}
    small_run(tmp_path, "stages.teacher.validate_every=1", "stages.train.validate_every=1")
    data = build_data(config)
    for stage in ("teacher", "intervene", "train"):
        names[stage] = set(logged_names(config, stage, data))
    assert seen == names


def test_a_run_builds_one_trainer_a_stage_and_its_losses_once(tmp_path, monkeypatch):
    config, made = composed(), []
    build_trainer, build_all = training.Trainer, training.create_all
    monkeypatch.setattr(training, "Trainer", lambda **given: made.append("trainer") or build_trainer(**given))
    monkeypatch.setattr(training, "create_all", lambda nodes, key: made.append(key) or build_all(nodes, key))
    run(config, tmp_path, [])
    assert made.count("trainer") == 4, "one that scores, and one for each of three stages"
    assert (made.count("losses"), made.count("intervention")) == (1, 1)


def test_a_partial_logger_gets_what_it_takes_and_a_typed_argument_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "_TENSORBOARD_AVAILABLE", True)  # only writing needs it
    node = "+logger.new={_target_: lightning.pytorch.loggers.%s, _partial_: true%s}"
    made = training.build_logger(composed(node % ("TensorBoardLogger", "")), "new", "train", tmp_path)
    assert (made.root_dir, made.name) == (str(tmp_path / "run-train"), "run-train")
    made = training.build_logger(composed(node % ("CSVLogger", ", name: mine")), "new", "train", tmp_path)
    assert Path(made.log_dir) == tmp_path / "mine/version_0"


def test_a_logger_whose_library_is_missing_is_refused_with_its_key(monkeypatch):
    monkeypatch.setattr(tensorboard, "_TENSORBOARD_AVAILABLE", False)
    node = "+logger.new={_target_: lightning.pytorch.loggers.TensorBoardLogger, _partial_: true}"
    with pytest.raises(ConfigError, match=r"logger\.new: .*tensorboard"):
        CHECKS["loggers"](planned(composed(node)), None)
