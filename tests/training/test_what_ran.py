"""What a trainer really did is what the run folder says: its precision, and where its time went."""

from __future__ import annotations

import json

import pytest
import yaml
from safetensors.torch import load_file

from qat_lightning.config.builders.models import build_data, build_model
from qat_lightning.config.builders.training import build_callbacks, build_module, build_trainer
from tests.training.runs import composed, small_run

ONE_STAGE = (
    "export.packed=false",
    "intervention=none",
    "intervention_schedule=none",
    "stages.teacher.max_steps=1",
    "stages.train.max_steps=2",
)


def test_a_precision_that_the_machine_lacks_is_recorded_as_what_ran(tmp_path, capsys):
    """Lightning computes 16-mixed on a CPU in bf16-mixed."""
    ran = small_run(tmp_path / "asked", *ONE_STAGE, "trainer.precision=16-mixed", "trainer.profiler=simple")
    said = capsys.readouterr().out
    assert "this machine cannot compute trainer.precision=16-mixed; the run uses and records bf16-mixed" in said
    assert ran["precision"] == "bf16-mixed"
    folder = tmp_path / "asked"
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["precision"] == "bf16-mixed"
    kept = json.loads((folder / "checkpoints/train.json").read_text())["settings"]
    assert kept["trainer.precision"] == "bf16-mixed"
    assert "- Precision of the training: bf16-mixed" in (folder / "report.md").read_text()
    assert f"train: profile in {folder}/logs/train" in said
    assert "run_training_epoch" in (folder / "logs/train/fit-simple.txt").read_text()
    small_run(folder, *ONE_STAGE, "trainer.precision=bf16-mixed")  # the same run: it goes on
    assert "finished before, not run again" in capsys.readouterr().out
    assert load_file(folder / "checkpoints/train.safetensors")


@pytest.mark.parametrize(
    ("profiler", "says"), [("advanced", "function calls"), ("pytorch", "Self CPU time total")], ids=str
)
def test_every_profiler_writes_to_the_logs_of_the_stage(tmp_path, profiler, says):
    config = composed(f"trainer.profiler={profiler}")
    data = build_data(config)
    data.load()
    trainer = build_trainer(config, "teacher", 6, tmp_path, build_callbacks(config, "teacher", data), 3)
    trainer.fit(build_module(config, "teacher", 6, build_model(config, data), data), datamodule=data)
    assert says in (tmp_path / f"logs/teacher/fit-{profiler}.txt").read_text()


def test_a_trainer_that_only_scores_has_no_profiler(tmp_path):
    trainer = build_trainer(composed("trainer.profiler=simple"), "teacher", 0, tmp_path, record=False)
    assert type(trainer.profiler).__name__ == "PassThroughProfiler"
