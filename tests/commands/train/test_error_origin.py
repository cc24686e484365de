"""Arguments that a callback or logger of another library accepts and cannot work with: one message, with the key."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.fabric.loggers import tensorboard
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from qat_lightning.commands.train.error_origin import key_in_errors
from qat_lightning.commands.train.trainer_checks import check_stages
from qat_lightning.config.builders.models import build_data
from qat_lightning.config.builders.training import build_logger
from qat_lightning.config.schema import ConfigError
from tests.training.runs import composed, small_run


def configured(group: str, kind: str, **arguments: object) -> str:
    given = "".join(f", {name}: {value}" for name, value in arguments.items())
    return f"+{group}.new={{_target_: lightning.pytorch.{group if group == 'callbacks' else 'loggers'}.{kind}{given}}}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            configured("callbacks", "BackboneFinetuning"),
            r"callbacks\.new cannot work .*AttributeError: 'QATModule' object has no attribute 'backbone'",
        ),
        (
            configured("callbacks", "WeightAveraging", foo=3),
            r"callbacks\.new cannot work with its arguments: TypeError: .* unexpected keyword argument 'foo'",
        ),
        (
            configured("callbacks", "StochasticWeightAveraging", swa_lrs=0.1),
            r"callbacks\.new cannot work .*SWA with `swa_epoch_start` as a float",
        ),
        (
            configured("logger", "WandbLogger", _partial_="true", offline="true", foo=3),
            r"logger\.new cannot work .*unexpected keyword argument 'foo'",
        ),
        (
            configured("logger", "WandbLogger", _partial_="true", offline="true", project="[1]"),
            r"logger\.new cannot work with its arguments: ValidationError: 1 validation error for Settings project",
        ),
    ],
)
def test_is_refused_with_its_key(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        small_run(tmp_path, override)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            configured("logger", "CSVLogger", _partial_="true", flush_logs_every_n_steps=0),
            r"logger\.new: .*modulo by zero",
        ),
        (
            configured("logger", "WandbLogger", offline="true", log_model="all"),
            r"logger\.new: Providing log_model=all and",
        ),
        (configured("callbacks", "ModelCheckpoint", save_top_k=-5), r"callbacks\.new: Invalid value for save_top_k=-5"),
    ],
)
def test_is_refused_before_anything_is_written(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        small_run(tmp_path / "run", override)
    assert not (tmp_path / "run").exists()


def test_a_partial_logger_gets_what_it_takes_and_a_typed_argument_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "_TENSORBOARD_AVAILABLE", True)  # only writing needs it
    config = composed(configured("logger", "TensorBoardLogger", _partial_="true"))
    made = build_logger(config, "new", "train", tmp_path)
    assert isinstance(made, TensorBoardLogger)
    assert (made.root_dir, made.name) == (str(tmp_path / "run-train"), "run-train")
    config = composed(configured("logger", "CSVLogger", _partial_="true", name="mine"))
    made = build_logger(config, "new", "train", tmp_path)
    assert isinstance(made, CSVLogger)
    assert Path(made.log_dir) == tmp_path / "mine/version_0"


def test_a_logger_whose_library_is_missing_is_one_message(monkeypatch):
    monkeypatch.setattr(tensorboard, "_TENSORBOARD_AVAILABLE", False)
    config = composed(configured("logger", "TensorBoardLogger", _partial_="true"))
    data = build_data(config)
    data.load()
    with pytest.raises(ConfigError, match=r"logger\.new: .*tensorboard") as caught:
        check_stages(config, data)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("error", [ValueError("ours"), OSError(28, "No space left on device"), RuntimeError("ours")])
def test_what_comes_from_elsewhere_passes_as_it_is(error):
    with pytest.raises(type(error)) as caught, key_in_errors(composed()):
        raise error
    assert caught.value is error
