"""A folder of configurations from a paper's page: what Hydra would act on before any check is refused, and nothing runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qat_lightning.commands import cli
from tests.security import plant
from tests.security.listening import listening, quiet

CALLED, FACTORY = "{_target_: os.system, command: 'touch canary'}", "{(): os.system, command: 'touch canary'}"
SWEPT = "mode: MULTIRUN\n  sweeper: {params: {%s}}"
REACHING = {
    "a callback": (f"callbacks: {{x: {CALLED}}}", "callbacks"),
    "a factory of logging": (f"job_logging: {{handlers: {{x: {FACTORY}}}}}", "job_logging"),
    "a class of logging": ("job_logging: {handlers: {x: {class: evil.Handler}}}", "job_logging"),
    "a file of logging": (
        "job_logging: {handlers: {x: {class: logging.FileHandler, filename: canary}}}",
        "job_logging",
    ),
    "Hydra's own logging": (f"hydra_logging: {{handlers: {{x: {FACTORY}}}}}", "hydra_logging"),
    "the environment": ("job: {env_set: {PATH: ., QAT_CANARY: x}}", "job.env_set"),
    "a copied environment": ("job: {env_copy: [HOME]}", "job.env_"),
    "another directory": ("job: {chdir: true}", "job.chdir"),
    "a launcher": (f"launcher: {CALLED}", "launcher"),
    "a sweeper": (f"sweeper: {CALLED}", "sweeper"),
    "a part of a sweeper": (f"sweeper: {{sampler: {CALLED}}}", "sweeper.sampler"),
    "a sweep": (SWEPT % "seed: '1,2'" + "\n  callbacks: {x: {_target_: os.system}}", "callbacks"),
    "the environment of a sweep's jobs": (
        SWEPT % "+hydra.job.env_set.QAT_CANARY: x",
        "sweeper.params.+hydra.job.env_set",
    ),
    "the logging of a sweep's jobs": (
        r"sweeper: {params: {hydra.job_logging: '{version:1,handlers:{x:{\(\):os.system,command:canary}}}'}}",
        "sweeper.params.hydra.job_logging",
    ),
    "a group of a sweep's jobs": ("sweeper: {params: {hydra/launcher: evil}}", "sweeper.params.hydra/launcher"),
    "the search path of a sweep's jobs": (
        SWEPT % "hydra.searchpath: '[pkg://evil]'",
        "sweeper.params.hydra.searchpath",
    ),
    "a package of a sweep's jobs": (SWEPT % "+allow_targets: '[evil]'", "sweeper.params.+allow_targets"),
    "a command line": ("mode: MULTIRUN\n  overrides: {hydra: ['hydra.job.env_set.PATH=x']}", "overrides"),
    "another command line": ("overrides: {task: ['seed=2']}", "overrides"),
    "more files": ("output_subdir: /tmp", "output_subdir"),
    "a new key": ("evil: {_target_: os.system}", "evil"),
}


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> str:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["qat_lightning", *words])
    monkeypatch.setattr("qat_lightning.commands.cli.checked", lambda *_: pytest.fail("Hydra called the program"))
    before = dict(os.environ)
    with listening() as heard, pytest.raises(SystemExit) as ended:
        cli.train()
    assert ended.value.code == 1
    quiet(folder, heard)
    assert not list(folder.rglob("canary"))
    assert {name: value for name, value in os.environ.items() if "FULL_ERROR" not in name} == {
        name: value for name, value in before.items() if "FULL_ERROR" not in name
    }
    return capsys.readouterr().err


def experiment(folder: Path, text: str) -> list[str]:
    (folder / "theirs" / "experiment").mkdir(parents=True)
    (folder / "theirs" / "experiment" / "paper.yaml").write_text(f"# @package _global_\nhydra:\n  {text}\n")
    return ["--config-dir=theirs", "+experiment=paper"]


def primary(folder: Path, text: str) -> list[str]:
    (folder / "theirs").mkdir()
    (folder / "theirs" / "paper.yaml").write_text(f"defaults: [config, _self_]\nhydra:\n  {text}\n")
    return ["-cd", "theirs", "-cn", "paper"]


def searched(folder: Path, text: str) -> list[str]:
    return [f"hydra.searchpath=[file://{folder}/theirs]", experiment(folder, text)[1]]


def swept(folder: Path, text: str) -> list[str]:
    return ["-m", *experiment(folder, text)]


@pytest.mark.parametrize("name", REACHING)
def test_what_reaches_beyond_hydra_is_refused(monkeypatch, capsys, tmp_path: Path, name: str) -> None:
    text, key = REACHING[name]
    assert f"hydra.{key}" in refused(monkeypatch, capsys, tmp_path, *experiment(tmp_path, text))


@pytest.mark.parametrize("place", [primary, searched, swept])
@pytest.mark.parametrize("name", ["a callback", "the environment"])
def test_by_another_way(monkeypatch, capsys, tmp_path: Path, place: Callable[..., Any], name: str) -> None:
    text, key = REACHING[name]
    assert f"hydra.{key}" in refused(monkeypatch, capsys, tmp_path, *place(tmp_path, text))


@pytest.mark.parametrize("place", [experiment, primary, searched, swept])
def test_a_file_cannot_allow_a_package(monkeypatch, capsys, tmp_path: Path, place: Callable[..., Any]) -> None:
    (tmp_path / "evil.py").write_text(plant.code(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    text = "verbose: false\nallow_targets: [evil]\nlosses: {x: {_target_: evil.Model}}"
    message = refused(monkeypatch, capsys, tmp_path, *place(tmp_path, text))
    assert "allow_targets can be given on the command line only" in message


def test_an_option_of_a_group_of_hydras(monkeypatch, capsys, tmp_path: Path) -> None:
    (tmp_path / "theirs" / "hydra" / "job_logging").mkdir(parents=True)
    place = tmp_path / "theirs" / "hydra" / "job_logging" / "paper.yaml"
    place.write_text("version: 1\nhandlers: {x: {(): os.system, command: 'touch canary'}}\n")
    words = ("--config-dir=theirs", "hydra/job_logging=paper")
    assert "hydra." in refused(monkeypatch, capsys, tmp_path, *words)


def test_a_search_path_imports_no_package(monkeypatch, capsys, tmp_path: Path) -> None:
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "__init__.py").write_text(plant.code(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    assert "hydra.searchpath" in refused(monkeypatch, capsys, tmp_path, *primary(tmp_path, "searchpath: [pkg://evil]"))


@pytest.mark.parametrize("flag", ["--experimental-rerun", "--experimental-r"])
def test_a_pickle_is_not_read(monkeypatch, capsys, tmp_path: Path, flag: str) -> None:
    plant.pickle_file(tmp_path / "config.pickle", tmp_path)
    assert "reads a pickle" in refused(monkeypatch, capsys, tmp_path, flag, "config.pickle")


@pytest.mark.parametrize(
    "words",
    [
        ["--config-dir=theirs", "+experiment=paper"],
        ["--config-dir=theirs", "--config-name=paper"],
        ["--config-dir=theirs", "+experiment=paper", "+hydra.job.env_set.QAT_TYPED=1"],
        ["--config-dir=theirs", "+experiment=paper", "hydra/job_logging=disabled"],
    ],
)
def test_what_is_harmless_or_typed_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "theirs" / "experiment").mkdir(parents=True)
    text = "hydra:\n  run: {dir: outputs/mine}\n  sweep: {dir: sweeps}\n  sweeper: {params: {seed: '1,2'}}\nexperiment: mine\n"
    (tmp_path / "theirs" / "experiment" / "paper.yaml").write_text(f"# @package _global_\n{text}")
    (tmp_path / "theirs" / "paper.yaml").write_text(f"defaults: [config, _self_]\n{text}")
    seen = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["qat_lightning", *words])
    monkeypatch.setattr("qat_lightning.commands.cli._run", lambda config: seen.append(config.experiment) or 0.0)
    cli.train()
    assert seen == ["mine"]
    assert (tmp_path / "outputs" / "mine").is_dir()
