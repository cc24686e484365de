"""Step sizes follow what they quantize for the first steps, alike in every process; then the gradient moves them."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qat_lightning.commands.train.run import run
from qat_lightning.config.builders.models import build_data, build_model, build_student
from qat_lightning.config.builders.training import build_module
from qat_lightning.models.convert import QuantizationRule, quantize
from qat_lightning.models.quantized_model import mean_step_sizes, step_sizes
from qat_lightning.quantization.quantizers.lsq import LSQQuantizer
from qat_lightning.training.callbacks import StepSizeWarmup
from tests.tiny_models import tiny_model
from tests.training.runs import composed, resolved, small_run, without

ROOT = Path(__file__).parents[2]
# lr 0 for all but the step sizes: what is quantized stays, so that what a step size follows can be recognized.
METHOD = (
    "quantization=lsq_w2a8", "quantization.weight.bits=4", "quantization.weight.initialization=minmax",
    "losses=logits", "intervention=none", "intervention_schedule=none",
    "callbacks=step_size_warmup", "stages=baseline", "stages.train.keep=last",
)  # fmt: skip


def learned(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "checkpoints" / "train.safetensors")
    return {name: value for name, value in tensors.items() if name.endswith(".step_size")}


def test_following_measures_each_tensor_and_takes_no_gradient():
    quantizer = LSQQuantizer(bits=4, initialization="minmax").train()
    quantizer.following = True
    for largest in (3.0, 0.5):
        x = torch.tensor([largest, -0.25], requires_grad=True)
        quantizer(x).sum().backward()
        assert quantizer.step_size.item() == largest
        assert quantizer.step_size.grad is None
        assert torch.equal(x.grad, torch.ones(2))
    quantizer.following = False
    quantizer(torch.tensor([3.0])).sum().backward()
    assert quantizer.step_size.item() == 0.5
    assert quantizer.step_size.grad is not None


def test_evaluation_uses_what_training_left():
    quantizer = LSQQuantizer(bits=4, initialization="minmax").eval()
    quantizer.following = True
    quantizer(torch.tensor([3.0]))
    assert quantizer.step_size.item() == 1.0


def test_steps_below_zero_are_refused():
    with pytest.raises(ValueError, match="steps=-1 must be 0 or more"):
        StepSizeWarmup(-1)


def test_released_after_the_first_steps(tmp_path):
    steps = ("stages.train.max_steps=6", "stages.train.max_epochs=null")
    own_rates = ("quantization.step_size.weights.lr=1e-2", "optimizer.lr=1e-30")
    followed = small_run(tmp_path / "a", *METHOD, *steps, *own_rates, "callbacks.step_size_warmup.steps=6")
    released = small_run(tmp_path / "b", *METHOD, *steps, *own_rates, "callbacks.step_size_warmup.steps=3")
    assert followed["status"] == released["status"] == "finished"
    following, free = learned(tmp_path / "a"), learned(tmp_path / "b")
    tensors = load_file(tmp_path / "a" / "checkpoints" / "train.safetensors")
    moved = 0
    for name, value in following.items():
        if name.endswith("weight_quantizer.step_size"):
            weight = tensors[name.replace("weight_quantizer.step_size", "weight")]
            assert value == weight.abs().max(), "min-max of a weight that stays"
            moved += bool(free[name] != value)
    assert moved > 0, "the gradient moves what it may"
    assert all((value > 0).all() for value in free.values())


@pytest.mark.slow
@pytest.mark.parametrize("initialization", ["percentile", "minmax", "lsq", "kl"])
def test_two_processes_measure_what_one_measures_on_the_joined_batch(tmp_path, initialization):
    """Warm-up to the end: what two processes leave is one process's with the double batch."""
    overrides = [
        *without("model", "data"), *METHOD, "model=vit_digits", "data=digits", "data.train_limit=64", "data.validation_limit=32",
        "model.architecture.num_hidden_layers=1", "+model.architecture.hidden_dropout_prob=0.0",
        "+model.architecture.attention_probs_dropout_prob=0.0", "callbacks.step_size_warmup.steps=9",
        f"quantization.weight.initialization={initialization}", "stages.teacher.max_steps=1", "stages.teacher.lr=0",
        "stages.train.max_steps=3", "stages.train.max_epochs=null", "optimizer.lr=1e-4",
    ]  # fmt: skip
    run(resolved(*overrides, "data.batch_size=16"), tmp_path / "one", [])
    two = ["trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=8", f"hydra.run.dir={tmp_path / 'two'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "qat_lightning", *overrides, *two]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    one, other = learned(tmp_path / "one"), learned(tmp_path / "two")
    assert len(one) == 6 * 2 + 4
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=2e-4, atol=0, msg=name)


def test_step_sizes_have_their_own_rates_and_decay(tmp_path):
    """arXiv:2101.05938, released code: 1e-3 and 2e-5 for weights, 3e-2 and 1e-4 for activations."""
    config = composed("+experiment=kdlsq_bert_base", "model=tiny", "data=random_text")
    data = build_data(config)
    module = build_module(config, "train", 4, build_student(config, build_model(config, data), data), data)
    groups = module.configure_optimizers()["optimizer"].param_groups
    counts = {(group["initial_lr"], group["weight_decay"]): len(group["params"]) for group in groups}
    # two layers of six matrices, the pooler, two tables; their 13 inputs and four operands a layer
    assert counts[1e-3, 2e-5] == 12 + 1 + 2
    assert counts[3e-2, 1e-4] == 12 + 1 + 8


def test_history_of_step_sizes_is_logged_and_drawn(tmp_path):
    method = (
        "quantization=lsq_w2a8",
        "quantization.weight.bits=4",
        "callbacks=[step_sizes,step_size_warmup]",
        "callbacks.step_size_warmup.steps=2",
    )
    small_run(tmp_path, *method)
    with (tmp_path / "logs" / "train" / "metrics.csv").open() as rows:
        logged = [row for row in csv.DictReader(rows) if row["train/loss"]]
    columns = {name for name in logged[0] if name.startswith("step_sizes/")}
    places = {
        "weights": ("layers.0", "layers.1", "embeddings", "pooler"),
        "activations": ("layers.0", "layers.1", "pooler"),
    }
    assert columns == {f"step_sizes/{kind}/{place}" for kind, given in places.items() for place in given}
    assert all(float(row[name]) > 0 for row in logged for name in columns)
    assert (tmp_path / "plots" / "step_sizes.png").is_file()
    assert "step_sizes.png" in (tmp_path / "report.md").read_text()


def test_mean_step_size_is_geometric():
    student = quantize(tiny_model("bert"), [QuantizationRule("layers.*", weight=LSQQuantizer, input=LSQQuantizer)])
    learned = step_sizes(student)
    with torch.no_grad():
        for index, step in enumerate(learned["weights"]):
            step.fill_(2.0 ** (index % 6))
    means = mean_step_sizes(student)
    assert means["weights"].keys() == means["activations"].keys() == {"layers.0", "layers.1"}
    assert means["weights"]["layers.1"].item() == pytest.approx(2.0 ** ((0 + 1 + 2 + 3 + 4 + 5) / 6))
    assert means["activations"]["layers.0"].item() == 1.0
    assert mean_step_sizes(tiny_model("bert")) == {"weights": {}, "activations": {}}
