"""What the guards let through: all that configuration needs, and a stranger's code under the one flag, pinned."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_object
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer

from qat_lightning.config.allowed_targets import locate
from qat_lightning.config.instantiate import check_targets, create
from qat_lightning.config.run_config import read_foreign
from qat_lightning.config.schema import CONF, ConfigError, as_plain
from qat_lightning.data.tokenizers import read_tokenizer
from tests.security import plant
from tests.security.corpus import CASES, COMMIT, GROUPS, HARMLESS, model_of
from tests.training.runs import composed

ROOT = Path(__file__).parents[2]


def targets() -> list[str]:
    texts = [path.read_text() for path in CONF.rglob("*.yaml")]
    return sorted({name for text in texts for name in re.findall(r"_target_: ([\w.]+)", text)})


@pytest.mark.parametrize("name", targets())
def test_every_target_of_conf(name: str) -> None:
    assert locate(name, "x") is get_object(name)


@pytest.mark.parametrize(
    "name",
    [
        "lightning.pytorch.callbacks.LearningRateMonitor",
        "lightning.pytorch.loggers.TensorBoardLogger",
        "torch.optim.SGD",
        "torchmetrics.classification.BinaryAUROC",
        "torchmetrics.regression.MeanSquaredError",
        "qat_lightning.distillation.losses.feature_matching.FeatureMatchingLoss",
    ],
)
def test_others_of_these_kinds(name: str) -> None:
    assert locate(name, "x") is get_object(name)


@given(
    st.text(alphabet="abo_.sy", max_size=12), st.sampled_from(["", "qat_lightning.", "torch.optim.", "torchmetrics."])
)
def test_no_other_dotted_path_is_found(name: str, source: str) -> None:
    with pytest.raises(ConfigError, match=r"is not allowed|does not exist"):
        check_targets({"_target_": source + name}, "x")


def test_a_refused_target_is_not_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_module.py").write_text(plant.code(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="is not allowed"):
        create({"_target_": "evil_module.Model"}, "x")
    assert not plant.canary(tmp_path).exists()


def test_a_run_folders_configuration_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = plant.run_folder(tmp_path)
    assert read_foreign(folder / "config.yaml") == as_plain(composed())


def test_pickled_weights_are_read_under_their_flag_as_tensors(tmp_path: Path) -> None:
    folder = plant.model(tmp_path)
    saved = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(saved, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"model\.pickled_weights=true"):
        model_of(folder)
    state = model_of(folder, pickled_weights=True).state_dict()
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in state.items())


def test_safetensors_come_first_under_that_flag(tmp_path: Path) -> None:
    folder = plant.model(tmp_path)
    torch.save({"x": plant.Runs(plant.command(tmp_path))}, folder / "pytorch_model.bin")
    assert model_of(folder, pickled_weights=True).config.model_type == "bert"
    assert not plant.canary(tmp_path).exists()


def test_shards_of_the_same_folder(tmp_path: Path) -> None:
    folder = plant.sharded(tmp_path, "model-00001-of-00001.safetensors")
    save_file(
        load_file(plant.plain() / "model.safetensors"), folder / "model-00001-of-00001.safetensors", {"format": "pt"}
    )
    saved, state = load_file(plant.plain() / "model.safetensors"), model_of(folder).state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_torchs_own_attention_can_be_named(tmp_path: Path, name: str) -> None:
    assert model_of(plant.model(tmp_path, attn_implementation=name)).config._attn_implementation == name


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ({"trust_remote_code": True, "revision": COMMIT}, (True, COMMIT, COMMIT)),
        ({"revision": COMMIT}, (False, COMMIT, COMMIT)),
        ({"revision": "main"}, (False, "main", "main")),
        ({}, (False, None, None)),
    ],
)
def test_the_flag_and_the_revision_reach_the_model_and_the_revision_alone_its_tokenizer(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], given: tuple[Any, ...]
) -> None:
    seen = []

    def refuse(path: str, **arguments: Any) -> None:
        seen.append((arguments["trust_remote_code"], arguments["revision"], arguments["code_revision"]))
        raise OSError("seen")

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    monkeypatch.setattr("qat_lightning.data.tokenizers.require_hub", lambda places: None)
    monkeypatch.setattr("qat_lightning.config.builders.pretrained.require_hub", lambda places: None)
    with pytest.raises(ConfigError, match="seen"):
        model_of("owner/model", **settings)
    with pytest.raises(ValueError, match="seen"):
        read_tokenizer("owner/model", 16, revision=settings.get("revision"))
    assert seen == [given, (False, *given[1:])]


FLOORS = {"torch": (2, 6), "lightning": (2, 6, 6), "hydra-core": (1, 3, 8), "transformers": (5, 10), "pyarrow": (21,)}


@pytest.mark.parametrize("name", FLOORS)
def test_the_floors_that_security_rests_on(name: str) -> None:
    """design: torch < 2.6 runs code despite weights_only, Lightning < 2.6.6 from checkpoints, Hydra < 1.3.8 from targets."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (floor,) = (match[1] for each in needed if (match := re.match(rf"{name}\s*>=([\d.]+)", each)))
    assert tuple(map(int, floor.split("."))) >= FLOORS[name]
    assert re.search(rf"`{name} ≥ {floor}`", (ROOT / "SECURITY.md").read_text())


def test_no_case_hides_another_of_the_same_name() -> None:
    assert len(CASES) == sum(map(len, GROUPS))
    assert CASES.keys().isdisjoint(HARMLESS)
