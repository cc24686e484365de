"""A run that stops anywhere goes on to the same bits; a finished stage is not run again; settings are never mixed."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from qat_lightning.config.builders.models import build_data
from qat_lightning.config.builders.training import stage_settings
from qat_lightning.config.schema import ConfigError
from qat_lightning.training.checkpoints import callbacks
from qat_lightning.training.checkpoints.callbacks import BestCheckpoint, ResumeCheckpoint, resume_point
from qat_lightning.training.checkpoints.checksum import is_sealed, read_sealed, write_sealed
from qat_lightning.training.module import QATModule
from qat_lightning.training.stage import Stage, set_aside
from tests.training import runs
from tests.training.runs import composed

EVERY_STEP = tuple(f"stages.{stage}.checkpoint_every=1" for stage in ("teacher", "intervene", "train"))


class StoppedError(RuntimeError):
    pass


def small_run(folder, *overrides):
    return runs.small_run(folder, "export.packed=false", *overrides)


def stop_after(monkeypatch, batches: int) -> None:
    """Let the program die after so many training batches, counted over all stages."""
    left = [batches]

    def die(self, outputs, batch, index):
        left[0] -= 1
        if left[0] < 0:
            raise StoppedError

    monkeypatch.setattr(QATModule, "on_train_batch_end", die, raising=False)


def stopped_run(folder, batches, *overrides):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, batches)
        with pytest.raises(StoppedError):
            small_run(folder, *overrides)
    assert not (folder / "metrics.json").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that was not stopped."""
    folder = tmp_path_factory.mktemp("whole")
    small_run(folder, *EVERY_STEP)
    return folder


@pytest.fixture
def uninterrupted(whole):
    return json.loads((whole / "metrics.json").read_text())


def check_same(resumed, uninterrupted):
    for figure in ("student_hash", "steps", "student", "student_last_step", "teacher", "assisted"):
        assert resumed[figure] == uninterrupted[figure], figure


# 3 batches an epoch: stops within and between epochs of the teacher (4 steps), intervene (6) and train (14 less
# intervene's 6) stages, at the first batch, at the last one, and where a stage has just begun; test_kill.py has the rest
@pytest.mark.parametrize("batches", [1, 4, 10, 17])
def test_stopped_run_ends_in_the_same_bits(tmp_path, uninterrupted, batches):
    stopped_run(tmp_path, batches, *EVERY_STEP)
    check_same(small_run(tmp_path, *EVERY_STEP), uninterrupted)


LEARNED = (
    "quantization=lsq_w2a8", "quantization.weight.bits=3", "quantization.weight.initialization=kl", "callbacks=step_size_warmup",
    "callbacks.step_size_warmup.steps=3",
)  # fmt: skip
STOCHASTIC = ("intervention_schedule=stochastic", "trainer.accumulate_grad_batches=2")
SHORT = (  # the teacher 1 step, intervene 4, train 4
    "stages.teacher.max_steps=1", "stages.intervene.max_steps=4", "stages.train.max_steps=8",
    "model.architecture.num_hidden_layers=1",
)  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "batches"),
    [
        (STOCHASTIC, 5),  # in the first half of a step
        (("intervention_schedule=inverted", *LEARNED, "trainer.precision=bf16-mixed"), 3),  # following
        ((*LEARNED, "trainer.precision=bf16-mixed"), 6),  # released
        (("model=tiny_llama", "data=random_tokens", "+model.architecture.tie_word_embeddings=true", *LEARNED), 6),
        (("stages.intervene.target_modules=[layers.*.feedforward.*]", "trainer.precision=64-true"), 3),
        # W_O has a gradient since the third batch, W_V none
        (("optimizer=bert_adam", "optimizer.lr=1e-3", "optimizer.step_count=shared"), 4),
    ],
    ids=["stochastic", "following", "released", "tied", "parts", "shared count"],
)
def test_every_method_resumes_to_the_same_bits(tmp_path, settings, batches):
    settings = (*settings, *SHORT, *EVERY_STEP)
    whole = small_run(tmp_path / "whole", *settings)
    stopped_run(tmp_path / "stopped", batches, *settings)
    assert small_run(tmp_path / "stopped", *settings)["student_hash"] == whole["student_hash"]


# 12 batches are 2 steps of the train stage, the 13th is lost; validations after batches 3 and 6 of it
@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    stopped_run(folder, 14, *EVERY_STEP)
    return folder


@pytest.fixture
def stopped_copy(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"last.ckpt": half}, r"last\.ckpt is half-written or damaged: resuming from previous\.ckpt"),
        ({"last.ckpt": flip, "previous.ckpt": flip}, r"previous\.ckpt is half-written or damaged: .*'train' starts again"),
        ({"best-3.ckpt": half}, r"last\.ckpt needs best-3\.ckpt, which is missing or damaged: .*starts again"),
        ({"last.ckpt": lambda path: torch.save({"callbacks": 1}, path)}, r"last\.ckpt is half-written or damaged"),
        ({"last.ckpt": lambda path: write_sealed({"callbacks": 1}, path)}, r"last\.ckpt is not a checkpoint of this program"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_reported_and_skipped(stopped_copy, uninterrupted, damage, words):
    for name, harm in damage.items():
        harm(stopped_copy / "checkpoints" / "train" / name)
    with pytest.warns(UserWarning, match=words):
        resumed = small_run(stopped_copy, *EVERY_STEP)
    check_same(resumed, uninterrupted)
    assert not (stopped_copy / "checkpoints" / "train").exists()


def test_the_previous_checkpoint_is_whole_and_one_save_older(stopped_copy):
    scratch = stopped_copy / "checkpoints" / "train"
    steps = [read_sealed(scratch / name)["global_step"] for name in ("previous.ckpt", "last.ckpt")]
    assert steps == [4, 5]
    assert {path.name for path in scratch.iterdir()} == {"best-3.ckpt", "last.ckpt", "previous.ckpt", "settings.json"}


def test_best_weights_of_later_steps_than_the_checkpoint_do_not_count(tmp_path, uninterrupted):
    """Checkpoints every 2 steps: the kill in step 3's validation leaves best-3 beside a checkpoint of step 2."""
    settings = tuple(word.replace("=1", "=2") for word in EVERY_STEP)
    save = ResumeCheckpoint._save

    def die(self, trainer, *_):
        if trainer.state.fn == "fit" and "train" in str(self.path) and trainer.global_step > 2:
            raise StoppedError
        if trainer.state.fn == "fit" and trainer.global_step % 2 == 0:
            save(self, trainer)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_save", "on_validation_end"):
            patch.setattr(ResumeCheckpoint, name, die)
        with pytest.raises(StoppedError):
            small_run(tmp_path, *settings)
    scratch = tmp_path / "checkpoints" / "train"
    assert set(read_sealed(scratch / "last.ckpt")["callbacks"]["BestCheckpoint"].values()) == {None}
    (scratch / "best-3.ckpt").write_bytes(b"another machine's, or half of it")
    check_same(small_run(tmp_path, *settings), uninterrupted)


def test_leftovers_are_removed_and_an_unknown_folder_is_not_gone_on_from(stopped_copy, uninterrupted):
    checkpoints = stopped_copy / "checkpoints"
    halves = (f"{name}.0123456789abcdef.part" for name in (".train.safetensors", ".train.json", "train/.last.ckpt"))
    for leftover in (*halves, "train/best-9.ckpt"):
        (checkpoints / leftover).write_bytes(b"half")
    (checkpoints / "train" / "settings.json").unlink()  # so nothing says whose last.ckpt this is
    with pytest.warns(UserWarning, match="earlier"):
        resumed = small_run(stopped_copy, *EVERY_STEP)
    check_same(resumed, uninterrupted)
    assert sorted(path.name for path in checkpoints.iterdir()) == sorted(
        f"{stage}.{kind}" for stage in ("teacher", "intervene", "train") for kind in ("json", "safetensors")
    )
    aside = stopped_copy / "earlier" / "1"
    assert (aside / "logs" / "train" / "metrics.csv").is_file()
    assert is_sealed(aside / "checkpoints" / "train" / "last.ckpt"), "moved aside whole, not deleted"
    assert not (stopped_copy / "logs" / "train" / "metrics.csv").is_file()


def test_results_of_another_run_are_set_aside(tmp_path):
    others = ("logs/train_more/x", "checkpoints/train_more.json", "checkpoints/other/last.ckpt")
    own = (
        "logs/train/metrics.csv", "logs/train.1/metrics.csv", "analysis/hessian.json", "checkpoints/train/last.ckpt",
        "checkpoints/train.safetensors", "metrics.json", "export/packed/manifest.json",
    )  # fmt: skip
    for name in (*others, *own):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    with pytest.warns(UserWarning, match="earlier/1"):
        assert set_aside(tmp_path, "train") == tmp_path / "earlier" / "1"
    kept = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert kept == {*others, *(f"earlier/1/{name}" for name in own)}
    assert set_aside(tmp_path, "train") is None


def test_what_was_set_aside_is_never_overwritten(tmp_path):
    (tmp_path / "earlier" / "2" / "checkpoints").mkdir(parents=True)  # "1" was removed
    (tmp_path / "earlier" / "2" / "checkpoints" / "train.json").write_text("earlier")
    (tmp_path / "earlier" / "notes").mkdir()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "train.json").write_text("later")
    with pytest.warns(UserWarning, match="earlier/3"):
        assert set_aside(tmp_path, "train") == tmp_path / "earlier" / "3"
    kept = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.json")}
    assert kept == {f"earlier/{n}/checkpoints/train.json": text for n, text in ((2, "earlier"), (3, "later"))}


def test_finished_stage_is_not_run_again(tmp_path, monkeypatch, capsys):
    first = small_run(tmp_path, *SHORT)
    (tmp_path / "metrics.json").unlink()
    (tmp_path / "checkpoints" / "train").mkdir()  # the kill came before it was removed
    stop_after(monkeypatch, 0)  # any training step would end the program
    again = small_run(tmp_path, *SHORT)
    assert again == first
    assert capsys.readouterr().out.count("finished before, not run again") == 3
    assert not (tmp_path / "checkpoints" / "train").exists()


CHANGED = {
    r"'intervene' .* \(losses\.hidden\.weight: 1\.0 → 0\.5\).*hydra\.run\.dir": ("losses.hidden.weight=0.5",),
    r"'teacher' .*seed: 1 → 2": ("seed=2",),
    r"'teacher' .*\(data\.train_limit: None → 20\)": ("data.train_limit=20",),
    r"'train' .*\(steps \(stages\..*max_steps.*\): 8 → 9\)": ("stages.train.max_steps=15",),
    "'intervene', and this run has teacher, train: .*intervention": ("intervention=none", "intervention_schedule=none"),
}


@pytest.mark.parametrize("named", CHANGED)
def test_changed_setting_is_named_before_anything_is_overwritten(whole, named):
    kept = (whole / "checkpoints" / "train.safetensors").read_bytes()
    with pytest.raises(ValueError, match=f"stage {named}"):
        small_run(whole, *EVERY_STEP, *CHANGED[named])
    assert (whole / "checkpoints" / "train.safetensors").read_bytes() == kept


def test_a_changed_setting_of_an_unfinished_stage_is_named(stopped_copy):
    kept = {path: path.read_bytes() for path in stopped_copy.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(ValueError, match=r"stage 'train' made with other settings \(stages\.train\.lr: None → 0\.1\)"):
        small_run(stopped_copy, *EVERY_STEP, "stages.train.lr=0.1")
    assert {path: path.read_bytes() for path in kept} == kept
    small_run(stopped_copy)  # how often checkpoints are written does not change the result


@pytest.mark.parametrize(
    "setting",
    [
        "trainer.gradient_clip_val=2", "trainer.gradient_clip_algorithm=value", "trainer.limit_val_batches=1",
        "trainer.precision=bf16-mixed", "trainer.accumulate_grad_batches=2", "data.evaluation_batch_size=3",
        "data.batch_size=9", "data.metrics.accuracy.average=macro", "seed=2", "+model.architecture.hidden_act=relu",
        "optimizer.weight_decay=0.5", "lr_scheduler.warmup=0.3", "stages.train.keep=last", "stages.train.validate_every=1",
    ],
)  # fmt: skip
def test_what_decides_a_result_is_a_setting_of_it(setting, settings_of):
    assert settings_of(composed(setting)) != settings_of(composed())


@pytest.mark.parametrize(
    "setting",
    [
        "threads=1", "data.num_workers=2", "trainer.accelerator=auto", "logger=wandb", "stages.train.checkpoint_every=7",
        "stages.train.checkpoint_minutes=0.1", "activation_checkpointing=true",
    ],
)  # fmt: skip
def test_what_decides_no_result_is_no_setting_of_it(setting, settings_of):
    assert settings_of(composed(setting)) == settings_of(composed())


@pytest.fixture(scope="module")
def settings_of():
    data = build_data(composed())
    data.load()
    return lambda config: stage_settings(config, "train", 9, data, "content", None)


def test_padding_and_how_answers_are_found_are_settings_of_a_result(settings_of):
    """They change no row, so the content does not tell them."""
    config = composed()
    for name in ("padding", "n_best", "max_answer_length", "null_threshold"):
        config.data[name] = "x"
        assert settings_of(config)[f"data.{name}"] == "x"


def test_the_assisted_score_survives_a_kill_after_the_last_step(tmp_path, uninterrupted):
    with pytest.MonkeyPatch.context() as patch:
        finish = Stage._finish

        def die(self, *arguments):
            if self.name == "intervene":
                raise StoppedError
            finish(self, *arguments)

        patch.setattr(Stage, "_finish", die)
        with pytest.raises(StoppedError):
            small_run(tmp_path, *EVERY_STEP)
    assert uninterrupted["assisted"] is not None
    check_same(small_run(tmp_path, *EVERY_STEP), uninterrupted)


@pytest.mark.parametrize(
    ("higher", "last", "kept"),
    [
        (True, 0.9, 0.9), (True, 0.8, 0.8), (True, 0.7, 0.8), (True, math.nan, 0.8), (False, 0.9, 0.8),
        (False, 0.7, 0.7), (True, math.inf, 0.8), (False, -math.inf, 0.8), (False, math.nan, 0.8),
    ],
)  # fmt: skip
def test_the_best_weights_give_way_to_last_ones_that_are_as_good(tmp_path, monkeypatch, higher, last, kept):
    loaded = []
    best = BestCheckpoint(tmp_path, "score", higher)
    best.score, best.step = 0.8, 3
    monkeypatch.setattr("qat_lightning.training.stage.read_sealed", lambda path: {"state_dict": path.name})
    trainer, module = SimpleNamespace(callbacks=[best]), SimpleNamespace(load_state_dict=loaded.append)
    data = SimpleNamespace(higher_is_better=higher)
    assert Stage("train", tmp_path, {})._take_best(trainer, module, data, last) == kept
    assert loaded == ([] if kept == last else ["best-3.ckpt"])


class Counting(LightningModule):
    """Its score at each validation is given."""

    def __init__(self, scores=()):
        super().__init__()
        self.weight, self.scores = torch.nn.Parameter(torch.zeros(1)), iter(scores)

    def training_step(self, batch, index):
        return self.weight.sum()

    def validation_step(self, batch, index):
        self.log("val/score", next(self.scores))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)  # the weight is minus the number of steps


def fit(folder, module, callbacks, steps):
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, val_check_interval=1, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        limit_val_batches=1.0 if module.scores else 0, logger=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False, callbacks=callbacks, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.zeros(steps)), DataLoader(torch.zeros(1)))


@pytest.mark.parametrize(
    ("minutes", "every", "expected"), [(None, 4, [4, 8]), (1, 100, [3, 6, 9]), (1, 4, [3, 4, 7, 8])]
)
def test_a_checkpoint_follows_steps_or_minutes(tmp_path, monkeypatch, minutes, every, expected):
    """25 s a step: a minute has gone by after the third."""
    clock, saved, save = [0.0], [], ResumeCheckpoint._save
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(ResumeCheckpoint, "_save", lambda *own: (saved.append(own[1].global_step), save(*own)))

    class Slow(Counting):
        def training_step(self, batch, index):
            clock[0] += 25
            return super().training_step(batch, index)

    fit(tmp_path, Slow([0.0] * 10), [ResumeCheckpoint(tmp_path / "last.ckpt", every, minutes)], 10)
    assert saved == [*expected, 10]  # and at the end
    assert resume_point(tmp_path)[0] is None  # without best weights: of no stage


@pytest.mark.parametrize(
    ("higher", "scores", "best"),
    [
        (True, [0.5, 0.7, 0.7, 0.6], (0.7, 2)),
        (False, [0.5, 0.7, 0.4, 0.6], (0.4, 3)),
        (True, [float("nan"), 0.1, float("nan"), 0.05], (0.1, 2)),
        (True, [float("nan")] * 4, (None, None)),
        (True, [float("inf"), 0.1, 0.2, float("inf")], (0.2, 3)),
        (False, [float("inf"), 9.0, float("nan"), 3.0], (3.0, 4)),
    ],
)
def test_best_weights_are_the_first_of_the_best_score(tmp_path, higher, scores, best):
    keeper = BestCheckpoint(tmp_path, "score", higher)
    fit(tmp_path, Counting(scores), [keeper, ResumeCheckpoint(tmp_path / "last.ckpt", 1, best=keeper)], 4)
    score, step = best
    assert keeper.step == step
    assert keeper.score == (None if score is None else pytest.approx(score))
    kept = list(tmp_path.glob("best-*.ckpt"))
    assert [path.name for path in kept] == ([] if step is None else [f"best-{step}.ckpt"])
    if step is not None:
        assert read_sealed(kept[0])["state_dict"]["weight"].item() == -step
        assert "optimizer_states" not in read_sealed(kept[0])


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    path = tmp_path_factory.mktemp("sealed") / "x.ckpt"
    write_sealed({"weight": torch.arange(5.0), "step": 3}, path)
    return path


def test_what_is_sealed_is_read_by_torch_as_well(sealed):
    assert is_sealed(sealed)
    for found in (read_sealed(sealed), torch.load(sealed, weights_only=True)):
        assert torch.equal(found["weight"], torch.arange(5.0))
        assert found["step"] == 3
    assert not is_sealed(sealed.with_name("none"))


@given(st.data())
def test_any_damage_is_noticed(sealed, data):
    content = sealed.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["cut", "flipped", "longer"]))
    harmed = {
        "cut": content[:place],
        "flipped": content[:place] + bytes([content[place] ^ data.draw(st.integers(1, 255))]) + content[place + 1 :],
        "longer": content + content[-1 - place :],
    }
    path = sealed.with_name("harmed.ckpt")
    path.write_bytes(harmed[kind])
    assert not is_sealed(path)
    with pytest.raises(ValueError, match=r"harmed\.ckpt is damaged or not there"):
        read_sealed(path)


@pytest.mark.parametrize("minutes", ["0", "-1", "nan"])
def test_minutes_between_checkpoints_are_above_zero(minutes):
    with pytest.raises(ConfigError, match=r"stages\.train\.checkpoint_minutes=.* must be"):
        composed(f"stages.train.checkpoint_minutes={minutes}")
