"""What ends a run with a message: a teacher that is not what it was, numbers that are not finite."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from safetensors.torch import load_file
from torch import nn

from qat_lightning.commands.train.run import run
from qat_lightning.config.builders.models import build_data, build_model, build_student
from qat_lightning.config.builders.training import build_callbacks, build_module, build_trainer
from qat_lightning.training.checkpoints.callbacks import ResumeCheckpoint
from qat_lightning.training.compatibility import check_teacher, other_order
from qat_lightning.training.guards import callbacks
from qat_lightning.training.guards.diagnosis import NonFiniteError
from qat_lightning.training.module import QATModule
from tests.command_line import call
from tests.tiny_models import tiny_model
from tests.training.runs import SMALL, composed, save_tokenizer, small_run, text_config

IMAGES = ("model=tiny_vit", "data=random_images", "data.size=16", "data.rows=24")
ROOT = Path(__file__).parents[3]


class Parts:
    """What a stage is trained with: a teacher and a student of other weights, and a Trainer of its own."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder, self.config = folder, composed(*IMAGES, *overrides)
        self.data = build_data(self.config)
        self.data.load()
        self.teacher = build_model(self.config, self.data)
        self.student = build_student(self.config, build_model(self.config, self.data), self.data)
        self.last = folder / "last.ckpt"

    def fit(self, *callbacks: Callback, steps: int = 4, resume: bool = False, stage: str = "train") -> Trainer:
        self.module = build_module(self.config, stage, steps, self.student, self.data, self.teacher)
        own = [*build_callbacks(self.config, stage, self.data), *callbacks, ResumeCheckpoint(self.last, 1)]
        self.trainer = build_trainer(self.config, stage, steps, self.folder, own, validate_every=100)
        self.trainer.fit(
            self.module, datamodule=self.data, ckpt_path=self.last if resume else None, weights_only=resume or None
        )
        return self.trainer

    def spoil(self, batch_number: int, row: int, value: float = float("nan")) -> None:
        """One pixel of one row of the batch with that number, 0 the first, is none."""
        made, collate = [0], self.data.collate

        def spoilt(rows):
            batch = collate(rows)
            if made[0] == batch_number:
                batch["pixel_values"][row, 0, 3, 3] = value
            made[0] += 1
            return batch

        self.data.collate = spoilt


@pytest.fixture
def parts(tmp_path):
    return Parts(tmp_path)


class At(Callback):
    """Calls `action` with the module before the step of that number, 0 the first."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            self.action(module)


def tensors_in(node):
    if isinstance(node, torch.Tensor):
        yield node
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    for child in children:
        yield from tensors_in(child)


# --- the teacher


def test_a_changed_teacher_ends_the_run_and_leaves_nothing_to_go_on_from(parts):
    name = "vit.layers.1.mlp.fc1.bias"
    with pytest.raises(ValueError, match=rf"stage train has changed its teacher.*{name} first, 1 of \d+ tensors"):
        parts.fit(At(2, lambda module: module.teacher.get_parameter(name).data.add_(1e-3)))
    assert torch.load(parts.last, weights_only=True)["global_step"] == 2, "the checkpoint from before it changed"


def test_a_stage_goes_on_with_its_own_teacher_only(parts):
    parts.fit(steps=2)
    parts.fit(steps=4, resume=True)
    parts.teacher.vit.layers[0].mlp.fc1.weight.data[0, 0] += 1
    with pytest.raises(ValueError, match="stage train: the teacher is not that of its checkpoint"):
        parts.fit(steps=6, resume=True)


@pytest.mark.parametrize(
    ("turn", "named"), [(lambda t: t.train(), "all of it"), (lambda t: t.vit.layers[1].train(), r"vit\.layers\.1")]
)
def test_a_teacher_in_training_mode_is_refused_before_the_first_step(parts, turn, named):
    before = copy.deepcopy(parts.student.state_dict())
    with pytest.raises(ValueError, match=rf"the teacher is in training mode \({named}\).*call teacher.eval"):
        parts.fit(At(0, lambda module: turn(module.teacher)))
    assert all(torch.equal(before[name], value) for name, value in parts.student.state_dict().items())


def test_teacher_is_in_no_gradient_bucket(parts, tmp_path):
    module = build_module(parts.config, "train", 2, parts.student, parts.data, parts.teacher)
    group = f"file://{tmp_path / 'group'}"
    torch.distributed.init_process_group("gloo", init_method=group, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(module)
        kept = wrapped._get_ddp_logging_data()
    finally:
        torch.distributed.destroy_process_group()
    trained = [parameter for parameter in parts.student.parameters() if parameter.requires_grad]
    teachers = {parameter.data_ptr() for parameter in parts.teacher.parameters()}
    assert kept["num_parameter_tensors"] == len(trained)
    assert kept["total_parameter_size_bytes"] == 4 * sum(parameter.numel() for parameter in trained)
    assert not teachers & {parameter.data_ptr() for parameter in wrapped.parameters()}


def test_teacher_is_in_no_checkpoint_and_no_optimizer(parts):
    trainer = parts.fit(steps=2)
    checkpoint = torch.load(parts.last, weights_only=True)
    taught = [tensor for tensor in parts.teacher.state_dict().values() if tensor.dim() > 1 and tensor.any()]
    held = list(tensors_in(checkpoint))
    assert len(held) > 100
    assert not any(tensor.shape == one.shape and torch.equal(tensor, one) for tensor in held for one in taught)
    assert all(name.startswith("student.") for name in checkpoint["state_dict"])
    trained = {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(parameter) for parameter in parts.student.parameters()}


def named(*names: str, seed: int = 0, **changes):
    """A tiny BERT whose classes have these names."""
    return tiny_model("bert", seed=seed, id2label=dict(enumerate(names)), num_labels=len(names), **changes)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (lambda: named("no", "maybe", "yes"), None),
        (lambda: named("NO", "maybe", "Yes"), None),
        (lambda: tiny_model("bert"), None),
        (lambda: named("maybe", "no", "yes"), "the teacher maps 'maybe' to 0, the student to 1"),
        (lambda: named("no", "maybe", "yes", vocab_size=81), "teacher knows 81 tokens and the student 80"),
    ],
)
def test_a_teacher_of_other_classes_or_tokens_is_refused(teacher, message):
    student = named("no", "maybe", "yes", seed=1)
    if message is None:
        check_teacher(teacher(), student)
    else:
        with pytest.raises(ValueError, match=message):
            check_teacher(teacher(), student)


def test_the_module_refuses_a_quantized_teacher_and_one_that_shares_weights(parts):
    make = QATModule.__init__.__get__(object.__new__(QATModule))
    rest = {"losses": {}, "metrics": {}, "predict": None, "optimizer": None, "lr_scheduler": None, "steps": 1}
    with pytest.raises(ValueError, match=r"the teacher is quantized \(vit.*quantizer\): hand over .* full precision"):
        make(parts.teacher, teacher=parts.student, **rest)
    shallow = copy.copy(parts.teacher)
    with pytest.raises(ValueError, match=r"share vit\..*copy\.deepcopy"):
        make(shallow, teacher=parts.teacher, **rest)
    assert all(parameter.requires_grad for parameter in shallow.parameters()), "refused before it was frozen"


@pytest.mark.parametrize(
    ("names", "expected", "first_difference"),
    [
        (["CONTRADICTION", "NEUTRAL", "ENTAILMENT"], ["entailment", "neutral", "contradiction"],
         ("CONTRADICTION", 0, 2)),
        (["not-entailment", "Entailment"], ["entailment", "not entailment"], ("not-entailment", 0, 1)),
        (["NEGATIVE", "POSITIVE"], ["negative", "positive"], None),
        (["bad", "good"], ["negative", "positive"], None),
        (None, ["negative", "positive"], None),
        (["negative", "positive"], None, None),
    ],
)  # fmt: skip
def test_other_order_compares_by_names(names, expected, first_difference):
    assert other_order(names, expected) == first_difference


WORDS = ["a", "film", "of", "that", "was", "bad", "good"]


def saved(folder: Path, names: tuple[str, str], words: list[str] = WORDS) -> Path:
    """Save a model whose classes have these names, and a tokenizer."""
    tiny_model("bert", num_labels=2, id2label=dict(enumerate(names)), vocab_size=12).save_pretrained(folder)
    return save_tokenizer(folder, *words)


def text_run(folder: Path, model: Path, *overrides: str) -> None:
    """A run on six sentences that are bad or good, in this order."""
    for split in ("train", "validation"):
        (folder / f"{split}.csv").write_text("text,label\n" + "a film that was bad,bad\na good film,good\n" * 3)
    text = ("data.text_columns=[text]", "data.tokenizer=${model.path}", "model=bert_base", f"model.path={model}")
    run(text_config(folder, *text, *overrides), folder / "run", [])


def test_a_model_that_numbers_some_of_the_datas_classes_otherwise_is_refused_before_training(tmp_path):
    model = saved(tmp_path / "model", ("Good", "awful"))
    with pytest.raises(ValueError, match=r"the model maps 'Good' to 0, the data to 1\. Fix id2label in config\.json\."):
        text_run(tmp_path, model)
    assert not (tmp_path / "run").exists()


def test_exports_name_the_classes_in_the_order_of_the_model(tmp_path, capsys):
    model = saved(tmp_path / "model", ("Good", "Bad"))
    short = (
        "stages.teacher.max_steps=0",
        "stages.train.max_steps=1",
        "intervention=none",
        "intervention_schedule=none",
    )
    text_run(tmp_path, model, *short)
    assert "data: classes have the numbers of the model: 0 'Good', 1 'Bad'" in capsys.readouterr().out
    exported = tmp_path / "run" / "export"
    assert json.loads((exported / "metrics.json").read_text())["classes"] == ["Good", "Bad"]
    assert json.loads((exported / "packed" / "config.json").read_text())["id2label"] == {"0": "Good", "1": "Bad"}


@pytest.mark.parametrize("bare", [False, True], ids=["its own", "none"])
def test_another_tokenizer_than_the_models_is_refused_before_training(tmp_path, monkeypatch, bare):
    model = saved(tmp_path / "model", ("bad", "good"))
    other = save_tokenizer(tmp_path / "other", *reversed(WORDS))
    if bare:  # a model without a tokenizer: nothing to compare with, the run goes on to its own steps
        for file in model.glob("tokenizer*"):
            file.unlink()
        monkeypatch.setattr("qat_lightning.commands.train.run.as_plain", lambda *_: {}["reached"])
        with pytest.raises(KeyError, match="reached"):
            text_run(tmp_path, model, f"data.tokenizer={other}")
    else:
        with pytest.raises(ValueError, match=r"is not the tokenizer of model\.path=.*leave data\.tokenizer out"):
            text_run(tmp_path, model, f"data.tokenizer={other}")
        assert not (tmp_path / "run").exists()


# --- numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_row_ends_the_run_before_it_touches_the_weights(parts, value):
    parts.spoil(batch_number=2, row=5, value=value)
    with pytest.raises(NonFiniteError) as ended:
        parts.fit()
    message = str(ended.value)
    assert re.search(r"stage train, step 3: the loss is not finite \(.*hidden = nan", message)
    assert "first in the teacher's embeddings (hidden, 0), rows 5 of the batch" in message
    assert all(f in message for f in ("optimizer.lr (now 0.00", "trainer.gradient_clip_val", "hydra.run.dir"))
    checkpoint = torch.load(parts.last, weights_only=True)
    assert checkpoint["global_step"] == 2
    own = parts.student.state_dict()
    assert all(torch.equal(own[name.removeprefix("student.")], kept) for name, kept in checkpoint["state_dict"].items())


def test_the_batch_that_was_at_fault_can_be_looked_at(parts):
    parts.config.trainer.accumulate_grad_batches = 3
    parts.spoil(batch_number=4, row=1)  # the second of three in step 2
    with pytest.raises(NonFiniteError, match=r"step 2: .*rows 1 of the batch"):
        parts.fit(steps=2)
    batch = load_file(parts.folder / "diverged.safetensors")
    assert batch["pixel_values"].isnan().nonzero().tolist() == [[1, 0, 3, 3]]
    assert len(batch["labels"]) == parts.data.batch_size


def test_the_same_command_goes_on_from_the_last_good_checkpoint(tmp_path, monkeypatch):
    overrides = (*IMAGES, "intervention=none", "intervention_schedule=none", "stages.train.checkpoint_every=1")
    whole = small_run(tmp_path / "whole", *overrides)
    steps = iter(range(1000))

    def spoil_once(self, trainer, module, batch, batch_idx):
        if module.teacher is not None and next(steps) == 5:
            batch["pixel_values"].mul_(float("nan"))

    monkeypatch.setattr(callbacks.FrozenTeacherCheck, "on_train_batch_start", spoil_once)
    with pytest.raises(NonFiniteError, match="step 6: "):
        small_run(tmp_path / "run", *overrides)
    kept = torch.load(tmp_path / "run/checkpoints/train/last.ckpt", weights_only=True)
    assert kept["global_step"] == 5
    assert small_run(tmp_path / "run", *overrides)["student_hash"] == whole["student_hash"]


@pytest.mark.parametrize("layer", [0, 1])
def test_the_layer_and_the_site_are_named(parts, layer):
    projection = parts.student.vit.layers[layer].attention.o_proj
    whole = projection.forward

    def spoilt(x):
        output = whole(x).clone()
        output[[1, 6]] = float("inf")
        return output

    with pytest.raises(NonFiniteError) as ended:
        parts.fit(At(1, lambda module: setattr(projection, "forward", spoilt)))
    message = str(ended.value)
    assert message.startswith("stage train, step 2: the loss is not finite (")
    assert f"; first in the student's layer {layer}, attention.projection, rows 1, 6 of the batch;" in message


class Rooted:
    """√|logit| of one row: its loss is finite where that logit is 0, its gradient is not."""

    weight, sites = 1.0, ("logits",)

    def __call__(self, student, teacher, batch):
        (logits,) = student["logits"]
        return (logits[3] - logits[3].detach()).abs().sum().sqrt() + logits.square().mean()


def test_a_gradient_that_is_not_finite_ends_the_run_though_the_loss_is(parts):
    before = copy.deepcopy(parts.student.state_dict())
    with pytest.raises(NonFiniteError) as ended:
        parts.fit(At(0, lambda module: module.distillation.losses.update(rooted=Rooted())))
    expected = "step 1: a gradient is not finite, its loss is; first in the gradient of logits, rows 3 of the batch"
    assert expected in str(ended.value)
    assert all(torch.equal(before[name], value) for name, value in parts.student.state_dict().items())


def test_weights_that_an_update_made_infinite_are_in_no_checkpoint(parts):
    parts.fit(steps=2)
    kept = parts.last.read_bytes()
    name = "vit.layers.0.mlp.fc1.weight"
    parts.student.get_parameter(name).data[0, 0] = float("inf")
    for weights_only in (False, True):
        with pytest.raises(NonFiniteError, match=f"after step 2: weight {name} is not finite"):
            parts.trainer.save_checkpoint(parts.last, weights_only=weights_only)
    assert parts.last.read_bytes() == kept


def scaled(parts, steps, scaler=None):
    """Train in half precision with a gradient scaler."""
    module = build_module(parts.config, "train", steps, parts.student, parts.data, parts.teacher)
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        default_root_dir=parts.folder, num_sanity_val_steps=0, limit_val_batches=0, check_val_every_n_epoch=None,
        val_check_interval=100, plugins=MixedPrecision("16-mixed", "cpu", scaler), enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=parts.data)
    return trainer


def test_infinite_gradients_are_in_order_where_they_are_scaled(parts):
    """The scaler leaves those steps out, halving its scale each time, and the run goes on."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    assert scaled(parts, 16, scaler).global_step == 16
    assert scaler.get_scale() < 2.0**24
    assert not (parts.folder / "diverged.safetensors").exists()


def test_a_loss_that_is_not_finite_ends_a_scaled_run_too(parts):
    parts.spoil(batch_number=1, row=0)
    with pytest.raises(NonFiniteError, match=r"step 2: .*rows 0 of the batch.*trainer\.precision=32-true"):
        scaled(parts, 4)


def test_validation_that_is_not_finite_ends_nothing(parts):
    parts.data.validation_rows = [
        {**row, "pixel_values": row["pixel_values"] * float("nan")} for row in parts.data.validation_rows
    ]
    parts.fit(steps=2)
    logged = parts.trainer.validate(parts.module, datamodule=parts.data, verbose=False)
    assert logged[0]["val/accuracy"] >= 0


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_without_waiting_for_the_answer_the_weights_are_spared_all_the_same(parts, monkeypatch, delay):
    """As on CUDA: the answer comes steps later, and the optimizer leaves out the bad step, and all until then, by itself."""
    parts.config.optimizer["fused"] = True

    def slow(flag):
        sent = parts.trainer.global_step
        return flag.clone(), lambda: parts.trainer.global_step > sent + delay

    monkeypatch.setattr(callbacks, "_leaves_out_by_itself", lambda optimizer: True)
    monkeypatch.setattr(callbacks, "_on_its_way", slow)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: type("Stream", (), {"synchronize": lambda self: None})())
    weights = []
    parts.spoil(batch_number=2, row=5)
    monkeypatch.setattr(ResumeCheckpoint, "_save", lambda self, trainer: None)
    snap = At(2, lambda module: weights.append(copy.deepcopy(module.student.state_dict())))
    with pytest.raises(NonFiniteError, match=r"step 3: .*rows 5 of the batch"):
        parts.fit(snap, steps=12)
    assert parts.trainer.global_step == 3 + delay
    assert not parts.last.exists()
    assert all(torch.equal(weights[0][name], value) for name, value in parts.student.state_dict().items())


def test_an_answer_still_under_way_is_waited_for_before_a_checkpoint(parts, monkeypatch):
    parts.config.optimizer["fused"] = True
    monkeypatch.setattr(callbacks, "_leaves_out_by_itself", lambda optimizer: True)
    waited = []
    monkeypatch.setattr(callbacks, "_on_its_way", lambda flag: (flag.clone(), lambda: bool(waited)))
    stream = type("Stream", (), {"synchronize": lambda self: waited.append(1)})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream())
    parts.spoil(batch_number=0, row=5)
    with pytest.raises(NonFiniteError, match=r"step 1: "):
        parts.fit()
    assert waited
    assert not parts.last.exists()


def test_a_folder_that_cannot_be_written_does_not_hide_what_happened(parts, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qat_lightning.training.guards.diagnosis.save_file", full)
    parts.spoil(batch_number=0, row=2)
    with pytest.raises(NonFiniteError, match=r"rows 2 of the batch.*could not be saved .*No space left"):
        parts.fit()


HALF = "trainer.precision=16-true"
"""In half precision AdamW's ε of 1e-8 is 0, and a weight without a gradient becomes 0/0."""


def test_from_the_command_line_it_ends_in_one_message_and_exit_code_1(tmp_path):
    ended = call(tmp_path, *SMALL, "hydra.run.dir=run", HALF)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert re.search(r"qat_lightning: stage \w+, step 2: the loss is not finite", ended.stderr)
    assert (tmp_path / "run" / "diverged.safetensors").is_file()
    assert not (tmp_path / "run" / "metrics.json").exists()


TWO = """
import os, sys
from pathlib import Path
from qat_lightning.data.synthetic import RandomImages
from qat_lightning.training.guards.diagnosis import NonFiniteError
from tests.training.runs import small_run
collate = RandomImages.collate
count = iter(range(10**6))
def spoilt(self, rows):
    batch = collate(self, rows)
    if os.environ.get("LOCAL_RANK") == "1" and len(rows) == 4 and next(count) == 5:
        batch["pixel_values"][2] = float("nan")
    return batch
RandomImages.collate = spoilt
try:
    small_run(Path(sys.argv[1]), "model=tiny_vit", "data=random_images", "data.size=16", "data.rows=24",
              "data.batch_size=4", "data.evaluation_batch_size=12", "quantization.calibration_rows=8",
              "trainer.devices=2", "trainer.strategy=ddp")
except NonFiniteError as error:
    Path(sys.argv[1], f"message.{os.environ.get('LOCAL_RANK', '0')}").write_text(str(error))
    sys.exit(1)
"""


@pytest.mark.slow
def test_two_processes_end_at_the_same_step_and_the_one_at_fault_says_why(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run([sys.executable, str(script), str(tmp_path / "run")], capture_output=True, text=True,
                           env=environment, timeout=150, check=False)  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    messages = [(tmp_path / "run" / f"message.{rank}").read_text() for rank in (0, 1)]
    steps = [re.match(r"stage \w+, step \d+", text).group() for text in messages]
    assert steps[0] == steps[1]
    assert "the rows of this process are finite" in messages[0]
    assert "rows 2 of the batch" in messages[1]
