"""A user's own classes: allowed on this command line alone, of the kind that the place needs, through a whole run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qat_lightning.commands import cli
from qat_lightning.config.allowed_targets import VARIABLE, allowing, locate
from qat_lightning.config.instantiate import create
from qat_lightning.config.schema import ConfigError
from tests.training.runs import without

HERE = Path(__file__).parent
ONE_LAYER = "model.architecture.num_hidden_layers=1"
ALLOWED = "allow_targets=[my_package]"
RUN = (
    f"--config-dir={HERE / 'conf'}", "+experiment=mine",
    *without("model=", "data=", "optimizer", "stages"),
    "stages.teacher.max_steps=2", "stages.intervene.max_steps=2", "stages.train.max_steps=3", "stages.train.max_epochs=null",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the user's package on sys.path, as it is for a command that starts beside it."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.delenv(VARIABLE, raising=False)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        del sys.modules[name]


def start(monkeypatch: pytest.MonkeyPatch, command: str, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["qat", *words])
    getattr(cli, command)()


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, *words: str) -> str:
    """Return the message of a command that must be refused without an import of the package."""
    with pytest.raises(SystemExit) as ended:
        start(monkeypatch, command, *words)
    assert ended.value.code == 1
    assert "my_package" not in sys.modules
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a class of the package in every place."""
    folder = tmp_path_factory.mktemp("own") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        start(patch, "train", *RUN, ALLOWED, f"hydra.run.dir={folder}")
        from my_package.training import SEEN

        (folder / "seen").write_text(" ".join(sorted(set(SEEN))))
    return folder


def test_a_run_uses_every_class_of_the_package(finished: Path) -> None:
    results = json.loads((finished / "metrics.json").read_text())
    assert (results["task"], results["metric"], results["higher_is_better"]) == ("counted tokens", "surprise", False)
    seen = (finished / "seen").read_text()
    assert seen == "callback distance intervention schedule logger loss lr schedule"
    recorded = (finished / "config.yaml").read_text() + (finished / "overrides.yaml").read_text()
    assert "allow_targets" not in recorded
    assert results["export"]["tensors"]["agreement"] == 1
    assert (finished / "export" / "student.pt").is_file()


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_commands_that_read_the_run_need_it_typed_again(finished, monkeypatch, capsys, command) -> None:
    message = refusal(monkeypatch, capsys, command, f"run={finished}")
    assert "my_package" in message
    assert f"add {ALLOWED} to this command" in message
    start(monkeypatch, command, f"run={finished}", ALLOWED)
    assert VARIABLE not in os.environ


def test_a_sweep_uses_the_package_in_each_job_and_the_environment_allows_it_too(monkeypatch, capsys, tmp_path) -> None:
    short = (*RUN, "stages.intervene.max_steps=0", "export.packed=false", f"hydra.sweep.dir={tmp_path}")
    start(monkeypatch, "train", "--multirun", *short, "seed=1,2", ALLOWED)
    assert len(list(tmp_path.glob("*/metrics.json"))) == 2
    monkeypatch.setenv(VARIABLE, "other_package,my_package")
    start(monkeypatch, "evaluate", f"run={tmp_path / '1'}")


def test_an_own_quantizer_that_gives_its_spec_is_exported(monkeypatch, tmp_path) -> None:
    own = (
        f"quantization.{name}._target_=my_package.quantizers.HalfRangeQuantizer" for name in ("weight", "activation")
    )
    words = (
        "quantization=uniform_w8a8",
        *own,
        "export.onnx=true",
        "~callbacks.count",
        ONE_LAYER,
        f"hydra.run.dir={tmp_path}",
    )
    start(monkeypatch, "train", *RUN, *words, ALLOWED)
    export = json.loads((tmp_path / "metrics.json").read_text())["export"]
    for name in ("packed", "onnx"):
        assert export[name]["score"] == export[name]["student"]
    start(monkeypatch, "evaluate", f"run={tmp_path}", "model=packed", ALLOWED)


def test_an_own_quantizer_without_spec_trains_and_preflight_names_what_it_prevents(
    monkeypatch, capsys, tmp_path
) -> None:
    quantizer = "{_target_: my_package.quantizers.SignQuantizer, _partial_: true}"
    rule = "{_target_: qat_lightning.models.convert.QuantizationRule, target_modules: layers.*"
    words = ("quantization=none", f"+quantization.rules.layers={rule}, weight: {quantizer}, input: {quantizer}}}")
    start(monkeypatch, "train", *RUN, *words, "~callbacks.count", f"hydra.run.dir={tmp_path}", ALLOWED)
    before, _, after = capsys.readouterr().out.partition("teacher: 2 steps")
    assert "SignQuantizer" in before
    assert "spec" in before
    assert after
    results = json.loads((tmp_path / "metrics.json").read_text())
    assert results["status"] == "finished"
    assert results["export"]["packed"] is None
    assert (tmp_path / "report.md").is_file()


PLACES = {
    ("losses.x", "training.CosineLoss"): None,
    ("losses.x", "training.CountSteps"): "losses.x: CountSteps is not a loss: it has no weight, sites, needs_teacher",
    ("losses.x", "training.absolute_error"): "losses.x._target_=.* is a function: give losses.x._partial_=true",
    ("losses.x", "training.Popen"): "is not allowed: subprocess.Popen is not a loss",
    ("losses.x", "training.torch.optim.SGD"): "does not exist",
    ("losses.x", "training.NotThere"): "does not exist",
    ("callbacks.x", "training.CountSteps"): None,
    ("callbacks.x", "training.CosineLoss"): "is not a Lightning Callback",
    ("quantization.rules.layers.weight", "quantizers.HalfRangeQuantizer"): None,
    ("quantization.rules.layers.weight", "training.CosineLoss"): "is not a Quantizer",
    ("optimizer", "training.Cosine"): "is not an Optimizer",
    ("data.metrics.x", "training.Surprise"): None,
    ("data.metrics.x", "training.Cosine"): "is not a torchmetrics Metric",
    ("data", "training.Surprise"): "is not a TaskData",
    ("logger.x", "training.CountSteps"): "is not a Lightning Logger",
    ("lr_scheduler", "training.NotAnything"): "NotAnything is not a learning-rate schedule: it has no __call__",
    ("intervention_schedule", "training.Cosine"): "Cosine is not an intervention schedule: it has no names",
    ("intervention.x", "training.NotAnything"): "NotAnything is not an Intervention",
    ("export.formats.x", "training.NotAnything"): "NotAnything is not an ExportFormat",
}
"""Key and class of my_package → how it is refused; None: it is made."""


@pytest.mark.parametrize(("place", "words"), PLACES.items(), ids=[" ".join(place) for place in PLACES])
def test_a_place_takes_objects_of_its_kind(place: tuple[str, str], words: str | None) -> None:
    key, name = place
    with allowing(["my_package"]):
        if words is None:
            create({"_target_": f"my_package.{name}"}, key)
            return
        with pytest.raises(ConfigError, match=words):
            create({"_target_": f"my_package.{name}"}, key)


def test_a_constructor_s_own_check_names_the_key() -> None:
    with allowing(["my_package"]), pytest.raises(ConfigError, match=r"^losses\.mine\.weight=-1 must be 0 or more"):
        create({"_target_": "my_package.training.CosineLoss", "weight": -1}, "losses.mine")


@pytest.mark.parametrize("name", ["os", "builtins", "qat_lightning", "torch", "my-package", "../my_package"])
def test_what_is_not_a_user_s_package_cannot_be_allowed(monkeypatch, capsys, name) -> None:
    message = refusal(monkeypatch, capsys, "train", *RUN, f"allow_targets=[{name}]")
    assert f"allow_targets=[{name}] is not allowed" in message


def test_a_package_below_another_is_allowed_alone() -> None:
    with allowing(["my_package.training"]):
        assert locate("my_package.training.CosineLoss", "losses.x").__name__ == "CosineLoss"
        with pytest.raises(ConfigError, match="is not allowed"):
            locate("my_package.quantizers.SignQuantizer", "quantization.weight")
