"""Whole runs with grouped and with recurring batches: what is read, reported and resumed, and what makes runs differ."""

import itertools
import json

import pytest
import torch

from qat_lightning.config.builders.models import build_data
from qat_lightning.config.builders.training import stage_settings
from qat_lightning.config.schema import ConfigError
from qat_lightning.training.module import QATModule
from tests.training.checkpoints.killing import killed
from tests.training.checkpoints.test_resume import StoppedError, stop_after
from tests.training.runs import composed, small_run

SHORT = (
    "stages.teacher.max_steps=3", "stages.intervene.max_steps=2", "stages.train.max_steps=9", "data.rows=30",
    "model.architecture.num_hidden_layers=1", "trainer.accumulate_grad_batches=2", "export.packed=false",
)  # fmt: skip
GROUPED, RECURRING = "data.group_by_length=true", "data.reshuffle=false"


@pytest.fixture(scope="module")
def run_and_batches(tmp_path_factory):
    """The folder of a run, its metrics.json, and the training batches that its stages saw."""
    folder, batches = tmp_path_factory.mktemp("run"), {}
    step = QATModule.training_step

    def watched(self, batch, index):
        batches.setdefault(self.stage, []).append(batch)
        return step(self, batch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QATModule, "training_step", watched)
        results = small_run(folder, *SHORT, GROUPED, RECURRING)
    return folder, results, batches


def test_the_report_and_the_results_tell_the_padding_of_the_batches_that_were_seen(run_and_batches):
    folder, results, batches = run_and_batches
    assert {name: len(seen) for name, seen in batches.items()} == {"teacher": 6, "intervene": 4, "train": 14}
    for stage, seen in batches.items():
        masks = [batch["attention_mask"] for batch in seen]
        assert results["padding"][stage]["tokens"] == sum(int(mask.sum()) for mask in masks)
        assert results["padding"][stage]["padding"] == sum(int((mask == 0).sum()) for mask in masks)
    assert json.loads((folder / "metrics.json").read_text())["padding"] == results["padding"]
    own, tokens, mixed = (
        sum(stage[name] for stage in results["padding"].values()) for name in ("padding", "tokens", "longest")
    )
    assert 0 < own < mixed
    (line,) = [line for line in (folder / "report.md").read_text().splitlines() if line.startswith("Padding:")]
    assert line.startswith(f"Padding: {own:,} of the {own + tokens:,} tokens in the training batches (")
    assert f"Saved: {mixed - own:,} against batches of mixed rows" in line


def test_recurring_batches_recur_bit_for_bit(run_and_batches):
    """Four batches an epoch: those of the second are those of the first, and those of every stage."""
    _, _, batches = run_and_batches
    inputs = {name: [batch["input_ids"] for batch in seen] for name, seen in batches.items()}
    first = inputs["train"][:4]
    for batch in itertools.chain(*inputs.values()):
        assert sum(batch.shape == one.shape and torch.equal(batch, one) for one in first) == 1


def test_without_rows_of_tokens_nothing_is_said(tmp_path):
    images = ("model=tiny_vit", "data=random_images", "data.size=16", "stages.teacher.max_steps=1")
    short = (
        "stages.intervene.max_steps=0",
        "intervention=none",
        "intervention_schedule=none",
        "stages.train.max_steps=1",
    )
    results = small_run(tmp_path, *images, *short, "export.packed=false")
    assert results["padding"] == {}
    assert "Padding" not in (tmp_path / "report.md").read_text()


def test_a_stopped_run_ends_in_the_same_bits(run_and_batches, tmp_path, monkeypatch):
    """In the second epoch of the train stage, after six of its batches and ten of the stages before."""
    own = (*SHORT, GROUPED, RECURRING, "stages.train.checkpoint_every=1")
    with monkeypatch.context() as patch:
        stop_after(patch, 16)
        with pytest.raises(StoppedError):
            small_run(tmp_path, *own)
    assert (tmp_path / "checkpoints" / "train" / "last.ckpt").is_file()
    assert small_run(tmp_path, *own)["student_hash"] == run_and_batches[1]["student_hash"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("settings", [(GROUPED,), (RECURRING,), (GROUPED, RECURRING)])
def test_runs_killed_anywhere_end_in_the_same_bits(settings, processes):
    kills = [("batch", 2, []), ("batch", 13, []), ("write", 7, []), ("batch", 27, []), ("batch", 33, [])]
    whole, *others = killed(settings, kills, processes, 500)
    assert len(whole) == 64
    assert others == [whole] * len(kills)


def settings(*overrides, without=()):
    config = composed(*overrides)
    for name in without:
        del config.data[name]
    data = build_data(config)
    data.load()
    return stage_settings(config, "train", 9, data, "content", None)


@pytest.mark.parametrize("changed", [GROUPED, RECURRING])
def test_they_are_settings_of_a_result(changed):
    assert settings(changed) != settings()


def test_a_run_folder_from_before_them_goes_on():
    assert settings() == settings(without=("group_by_length", "reshuffle"))
    assert "data.evaluation_batch_size" in settings()  # null, and a setting all the same


def test_nor_does_it_know_how_a_map_loss_is_computed_or_of_a_compiler():
    config = composed("losses=unified_gamma")
    data = build_data(config)
    kept = stage_settings(config, "train", 1, data, "", None)
    assert not [key for key in kept if "implementation" in key or key in ("compile", "teacher_precision")]
    config = composed("losses=unified_gamma", "losses.unified.first.implementation=blockwise", "compile=true")
    kept = stage_settings(config, "train", 1, data, "", None)
    assert kept["losses.unified.first.implementation"] == "blockwise"
    assert kept["compile"] is True


@pytest.mark.parametrize("wrong", ["data.group_by_length=null", "data.reshuffle=3", "data.group_by_length=yess"])
def test_what_is_neither_true_nor_false_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"data\.(group_by_length|reshuffle)=.*valid boolean"):
        composed(wrong)
