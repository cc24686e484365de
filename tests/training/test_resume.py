"""A run that stops anywhere goes on to the same bits; a finished stage is not run again; settings are never mixed."""

import json

import pytest

from qat_lightning.training.module import QATModule
from tests.training.runs import small_run

EVERY_STEP = tuple(f"stages.{stage}.checkpoint_every=1" for stage in ("teacher", "intervene", "train"))


class StoppedError(RuntimeError):
    pass


def stop_after(monkeypatch, batches: int) -> None:
    """Let the program die after so many training batches, counted over all stages."""
    left = [batches]

    def die(self, outputs, batch, index):
        left[0] -= 1
        if left[0] < 0:
            raise StoppedError

    monkeypatch.setattr(QATModule, "on_train_batch_end", die, raising=False)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("whole"), *EVERY_STEP)


# 3 batches an epoch: stops within and between epochs of the teacher (4 steps), intervene (6) and train (14 less
# intervene's 6) stages, at the first batch, at the last one, and where a stage has just begun
@pytest.mark.parametrize("batches", [1, 2, 3, 4, 5, 7, 9, 10, 12, 13, 16, 17])
def test_stopped_run_ends_in_the_same_bits(tmp_path, monkeypatch, uninterrupted, batches):
    with monkeypatch.context() as patch:
        stop_after(patch, batches)
        with pytest.raises(StoppedError):
            small_run(tmp_path, *EVERY_STEP)
    assert not (tmp_path / "metrics.json").exists()
    resumed = small_run(tmp_path, *EVERY_STEP)
    assert resumed["student_hash"] == uninterrupted["student_hash"]
    assert resumed["steps"] == uninterrupted["steps"]
    assert resumed["student"] == uninterrupted["student"]


def test_stochastic_schedule_and_accumulation_resume_to_the_same_bits(tmp_path, monkeypatch):
    settings = (*EVERY_STEP, "schedule=stochastic", "trainer.accumulate_grad_batches=2", "data.num_workers=2")
    whole = small_run(tmp_path / "whole", *settings)
    with monkeypatch.context() as patch:
        stop_after(patch, 11)
        with pytest.raises(StoppedError):
            small_run(tmp_path / "stopped", *settings)
    assert small_run(tmp_path / "stopped", *settings)["student_hash"] == whole["student_hash"]


LEARNED = (
    "quantization=lsq_w3a8", "quantization.weight.initialization=kl", "callbacks=step_size_warmup",
    "callbacks.step_size_warmup.steps=3",
)  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "batches"),
    [
        (LEARNED, 6),  # following
        (LEARNED, 13),  # released
        ((*LEARNED, "trainer.precision=bf16-mixed"), 13),
        (("trainer.precision=64-true",), 12),
        (("model=tiny_llama", "data=random_tokens", "+model.architecture.tie_word_embeddings=true", *LEARNED), 13),
        (("stages.intervene.parts=[layers.*.feedforward.*]",), 7),
    ],
    ids=["following", "released", "bf16", "float64", "tied", "parts"],
)
def test_every_method_resumes_to_the_same_bits(tmp_path, monkeypatch, settings, batches):
    whole = small_run(tmp_path / "whole", *EVERY_STEP, *settings)
    with monkeypatch.context() as patch:
        stop_after(patch, batches)
        with pytest.raises(StoppedError):
            small_run(tmp_path / "stopped", *EVERY_STEP, *settings)
    assert small_run(tmp_path / "stopped", *EVERY_STEP, *settings)["student_hash"] == whole["student_hash"]


def test_finished_stage_is_not_run_again(tmp_path, monkeypatch, capsys):
    first = small_run(tmp_path)
    (tmp_path / "metrics.json").unlink()
    stop_after(monkeypatch, 0)  # any training step would end the program
    again = small_run(tmp_path)
    assert again == first
    assert capsys.readouterr().out.count("finished before, not run again") == 3


def test_changed_setting_is_named_before_anything_is_overwritten(tmp_path):
    small_run(tmp_path)
    kept = (tmp_path / "checkpoints" / "train.safetensors").read_bytes()
    message = r"stage 'intervene' made with other settings \(losses\.hidden\.weight: 1\.0 → 0\.5\).*hydra\.run\.dir"
    with pytest.raises(ValueError, match=message):
        small_run(tmp_path, "losses.hidden.weight=0.5")
    assert (tmp_path / "checkpoints" / "train.safetensors").read_bytes() == kept


def test_changed_teacher_is_noticed_in_the_teacher_stage(tmp_path):
    small_run(tmp_path)
    with pytest.raises(ValueError, match=r"stage 'teacher' .*seed: 1 → 2"):
        small_run(tmp_path, "seed=2")
    with pytest.raises(ValueError, match=r"stage 'teacher' .*data\.content"):
        small_run(tmp_path, "data.train_limit=20")


def test_record_of_a_stage_says_what_it_was(tmp_path):
    results = small_run(tmp_path)
    record = json.loads((tmp_path / "checkpoints" / "intervene.json").read_text())
    assert record["steps"] == results["steps"]["intervene"] == 6
    assert record["settings"]["schedule.shares.map"] == 4
    assert record["assisted"] is not None
    assert not (tmp_path / "checkpoints" / "intervene").exists()
