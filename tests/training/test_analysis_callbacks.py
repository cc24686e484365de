"""The analyses' callbacks: what they log and write, and that training is bit for bit what it is without them."""

import csv
import json

import pytest
import torch

from qat_lightning.analysis.result_files import read_landscapes, read_spectra
from qat_lightning.training import analysis_callbacks
from qat_lightning.training.analysis_callbacks import AttentionAnalysis, HessianSpectrum, LossLandscape
from qat_lightning.training.module import QATModule
from tests.command_line import call
from tests.training.runs import SMALL, small_run

LOGGED = ("analysis/ranking_loss", "analysis/cover_length_ratio", "analysis/map_divergence")
TARGET = "qat_lightning.training.analysis_callbacks"
ALL = (
    f"+callbacks.maps={{_target_: {TARGET}.AttentionAnalysis, rows: 5, k: 3}}",
    f"+callbacks.hessian={{_target_: {TARGET}.HessianSpectrum, batches: 2, top: 2}}",
    f"+callbacks.landscape={{_target_: {TARGET}.LossLandscape, points: 3}}",
)


EVERY_STEP = tuple(f"stages.{stage}.checkpoint_every=1" for stage in ("teacher", "intervene", "train"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("plain"), *EVERY_STEP)


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analysed")
    return folder, small_run(folder, *EVERY_STEP, *ALL)


def logged(folder, stage: str) -> dict[str, list[float]]:
    with (folder / "logs" / stage / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    return {name: [float(row[name]) for row in rows if row.get(name)] for name in LOGGED}


def test_training_is_bit_for_bit_what_it_is_without_them(plain, analysed):
    _, results = analysed
    assert results["student_hash"] == plain["student_hash"]
    for key in ("teacher", "untrained", "student", "student_last_step", "assisted", "steps"):
        assert results[key] == plain[key], key


def test_the_measures_are_logged_where_there_is_a_teacher(analysed):
    folder, _ = analysed
    assert all(values == [] for values in logged(folder, "teacher").values())
    for stage, validations in (("intervene", 3), ("train", 2)):
        for name, values in logged(folder, stage).items():
            assert len(values) >= validations, (stage, name)
            assert all(value > 0 for value in values)
    cover = logged(folder, "train")["analysis/cover_length_ratio"]
    assert all(0 < value < 1 for value in cover)


def test_the_logged_measures_are_those_of_the_student_against_its_teacher(analysed, monkeypatch):
    seen = []

    def recording(student, teacher, batch, k):
        seen.append((student["attention.probs"], teacher["attention.probs"], batch, k))
        return {"ranking_loss": [2.0, 4.0]}

    monkeypatch.setattr(analysis_callbacks, "compare_maps", recording)
    folder, _ = analysed
    small_run(folder.parent / "recorded", ALL[0])
    assert len(seen) > 4
    assert {k for *_, k in seen} == {3}
    assert all(len(batch["input_ids"]) == 5 for _, _, batch, _ in seen)
    assert all(torch.equal(*pair) for pair in zip(seen[0][1], seen[-1][1], strict=True)), "one teacher, one batch"
    assert not torch.equal(seen[0][0][0], seen[-1][0][0]), "the student learns"
    assert not any(layer.is_inference() for student, teacher, _, _ in seen for layer in [*student, *teacher])
    assert logged(folder.parent / "recorded", "train")["analysis/ranking_loss"][-1] == 3.0


def test_what_is_written_is_of_the_finished_student_and_its_teacher(analysed):
    folder, results = analysed
    (spectra, about), (landscapes, _) = read_spectra(folder), read_landscapes(folder)
    assert set(spectra) == set(landscapes) == {"teacher", "student"}
    assert [len(batch) for batch in spectra["student"]] == [2]  # 24 training rows are one batch of 32
    assert spectra["student"] != spectra["teacher"]
    assert [len(row) for row in landscapes["student"].losses] == [3, 3, 3]
    assert landscapes["student"].steps == [-1, 0, 1]
    assert landscapes["student"].losses[1][1] != landscapes["teacher"].losses[1][1]
    assert about == "Top 2 by magnitude, of the task's loss on each of 1 mini-batches of the training data"
    report = (folder / "report.md").read_text()
    for name in ("hessian", "landscape"):
        assert f"](plots/{name}.png)" in report
        assert about in report
        assert (folder / "plots" / f"{name}.png").is_file()
    assert results["status"] == "finished"


def test_the_seconds_of_a_stage_do_not_count_them(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(analysis_callbacks, "hessian_spectrum", lambda *_, **__: order.append("spectrum") or [[1.0]])
    save = analysis_callbacks.Trainer.save_checkpoint
    monkeypatch.setattr(
        analysis_callbacks.Trainer, "save_checkpoint", lambda *a, **k: order.append("saved") or save(*a, **k)
    )
    small_run(tmp_path, ALL[1])
    assert order.count("spectrum") == 2  # teacher and student, once
    assert order[-2:] == ["spectrum", "spectrum"], "after the last checkpoint"


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, analysed):
    class StoppedError(RuntimeError):
        pass

    def die(self, outputs, batch, index):
        if self.trainer.global_step == 3 and self.teacher is not None:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(QATModule, "on_train_batch_end", die, raising=False)
        with pytest.raises(StoppedError):
            small_run(tmp_path, *EVERY_STEP, *ALL)
    assert not (tmp_path / "analysis").exists()
    folder, whole = analysed
    assert small_run(tmp_path, *EVERY_STEP, *ALL)["student_hash"] == whole["student_hash"]
    assert read_spectra(tmp_path) == read_spectra(folder)
    assert read_landscapes(tmp_path) == read_landscapes(folder)


@pytest.mark.parametrize(
    "method",
    [
        ("teacher=none", "losses=task", "intervention=none", "intervention_schedule=none", *ALL),
        ("callbacks=[analysis,hessian,landscape]", "callbacks.hessian.norm_weight=0.01", "callbacks.landscape.points=3"),
        ("model=vit_digits", "data=random_images", "data.channels=1", "data.size=8", "data.rows=16",
         "model.architecture.num_hidden_layers=2", "trainer.precision=64-true", *ALL),
    ],
    ids=["without a teacher", "by name", "images"],
)  # fmt: skip
def test_they_are_one_override_away(tmp_path, method):
    assert small_run(tmp_path, *method)["status"] == "finished"
    if "callbacks.hessian.norm_weight=0.01" in method:
        spectra, about = read_spectra(tmp_path)
        assert "loss + 0.01·Σ‖p‖₂" in about
        assert spectra["teacher"][0][0] > 100, "a key's bias has hardly moved from 0"
    if "teacher=none" in method:
        assert set(read_spectra(tmp_path)[0]) == {"student"}
        assert "analysis/ranking_loss" not in (tmp_path / "logs" / "train" / "metrics.csv").read_text()


@pytest.mark.slow
def test_two_processes_train_to_the_same_bits_with_them(tmp_path):
    hashes = []
    for name, callbacks in (("with", ALL), ("without", ())):
        words = (*SMALL, "data.batch_size=10", *callbacks, "trainer.devices=2", "trainer.strategy=ddp")
        assert call(tmp_path, *words, f"hydra.run.dir={name}").returncode == 0
        hashes.append(json.loads((tmp_path / name / "metrics.json").read_text())["student_hash"])
    assert hashes[0] == hashes[1]
    assert set(read_spectra(tmp_path / "with")[0]) == {"teacher", "student"}
    assert logged(tmp_path / "with", "train")["analysis/ranking_loss"]


def test_a_stage_is_not_lost_to_a_spectrum_that_is_not_finite(tmp_path):
    """Training, whose attention is fused, may stay finite where second derivatives do not."""
    spectrum = HessianSpectrum._spectrum

    def spoilt(self, name, model, batches):
        if name == "student":
            next(model.parameters()).data.fill_(float("nan"))
        return spectrum(self, name, model, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HessianSpectrum, "_spectrum", spoilt)
        with pytest.warns(UserWarning, match="no Hessian spectrum of the student: the Hessian is not finite"):
            results = small_run(tmp_path, *ALL[:2])
    assert results["status"] == "finished"
    assert read_spectra(tmp_path)[0]["student"] == []
    assert read_spectra(tmp_path)[0]["teacher"] != []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttentionAnalysis(rows=0), "rows=0 must be 1 or more"),
        (lambda: HessianSpectrum(top=0), "top=0 must be 1 or more"),
        (lambda: HessianSpectrum(norm_weight=-1.0), "norm_weight=-1"),
        (lambda: LossLandscape(points=4), "points=4 must be odd"),
        (lambda: LossLandscape(span=0.0), r"span=0\.0 must be positive"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
