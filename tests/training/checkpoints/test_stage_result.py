"""Files of a run folder that somebody has damaged or removed: reported by their name, with what to do about it."""

import json
import shutil

import pytest

from qat_lightning.commands import cli
from qat_lightning.commands.evaluate import evaluate
from qat_lightning.config.schema import ConfigError
from qat_lightning.training.checkpoints.callbacks import HELD, resume_point
from qat_lightning.training.checkpoints.checksum import read_sealed, write_sealed
from tests.training.runs import composed, small_run

SMALL = ("export.packed=false",)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    small_run(folder, *SMALL)
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


BROKEN = ["", "{", "[]", "{}", "7", '"x"', '{"steps": "many"}', b"\xff\xfe\x00", "[" * 100_000, b" " * (8 * 2**20 + 1)]


def write(place, content):
    place.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_a_damaged_record_of_a_stage(copy, content):
    write(copy / "checkpoints" / "teacher.json", content)
    with pytest.raises(
        ValueError, match=r"teacher\.json is damaged: copy it again, or remove teacher\.json and teacher\."
    ):
        small_run(copy, *SMALL)


def flip(path):
    content = path.read_bytes()
    path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])


def exchange(one, other):
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@pytest.mark.parametrize("stage", ["teacher", "intervene", "train"])
def test_one_bit_of_a_finished_stage_is_noticed(copy, stage):
    flip(copy / "checkpoints" / f"{stage}.safetensors")
    with pytest.raises(ValueError, match=rf"{stage}\.safetensors is not the file of stage '{stage}'"):
        small_run(copy, *SMALL)
    model = {"teacher": "teacher", "train": "student"}.get(stage)
    if model:
        with pytest.raises(ValueError, match="its SHA-256 differs"):
            evaluate(composed(*SMALL), copy, model)


@pytest.mark.parametrize(
    ("kinds", "words"), [(["safetensors"], "its SHA-256 differs"), (["safetensors", "json"], "is the record of stage")]
)
def test_exchanged_stages_are_noticed(copy, kinds, words):
    for kind in kinds:
        exchange(copy / "checkpoints" / f"intervene.{kind}", copy / "checkpoints" / f"train.{kind}")
    with pytest.raises(ValueError, match=words):
        evaluate(composed(*SMALL), copy, "student")
    with pytest.raises(ValueError, match=words):
        small_run(copy, *SMALL)


def test_what_the_message_advises_is_right(copy, finished):
    (copy / "checkpoints" / "train.safetensors").unlink()
    with pytest.raises(ValueError, match=r"train\.safetensors is not there.*or remove train\.json") as refused:
        small_run(copy, *SMALL)
    assert "train.safetensors beside it, and the run's metrics.json" in str(refused.value)
    for name in ("checkpoints/train.json", "metrics.json"):
        (copy / name).unlink()
    with pytest.warns(UserWarning, match="earlier"):  # the log of the stage that is trained again
        again = small_run(copy, *SMALL)
    assert again["student_hash"] == json.loads((finished / "metrics.json").read_text())["student_hash"]


@pytest.mark.parametrize("content", ["", "{", "[]", "7", b"\xff\xfe\x00"])
def test_damaged_settings_of_a_stage_that_has_begun(copy, content):
    for name in ("train.json", "train.safetensors"):
        (copy / "checkpoints" / name).unlink()
    (copy / "metrics.json").unlink()
    (copy / "checkpoints" / "train").mkdir()
    write(copy / "checkpoints" / "train" / "settings.json", content)
    with pytest.raises(ValueError, match=r"settings\.json is damaged: remove it"):
        small_run(copy, *SMALL)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"student": "good"}', b"\xff"])
def test_a_damaged_result_is_reported_before_anything_is_scored(copy, monkeypatch, content):
    write(copy / "metrics.json", content)
    monkeypatch.setattr("qat_lightning.commands.evaluate.opened", lambda *_: pytest.fail("scored"))
    with pytest.raises(ConfigError, match=r"metrics\.json is damaged: the run's own command .* writes it again"):
        evaluate(composed(*SMALL), copy, "student")


@pytest.mark.parametrize(
    "content", ["{", "[1, 2]", "seed=3", "a: b", "[[seed=3]]", "7", "!!python/name:os.system ''", b"\xff\xfe\x00"]
)
def test_damaged_overrides_are_reported(tmp_path, content):
    write(tmp_path / "overrides.yaml", content)
    with pytest.raises(ConfigError, match=r"overrides\.yaml is damaged"):
        cli._recorded_overrides(tmp_path)


@pytest.mark.parametrize(("content", "words"), [("", []), ("[]", []), ("[seed=3, 'a=[b]']", ["seed=3", "a=[b]"])])
def test_whole_overrides_are_read(tmp_path, content, words):
    assert cli._recorded_overrides(tmp_path) == []  # no such file
    write(tmp_path / "overrides.yaml", content)
    assert cli._recorded_overrides(tmp_path) == words


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["callbacks"]["BestCheckpoint"].update(step="../../x"),
        lambda content: content["callbacks"]["BestCheckpoint"].update(step=True),
        lambda content: content["callbacks"]["BestCheckpoint"].pop("score"),
        lambda content: content["callbacks"].update(BestCheckpoint=[1]),
        *(lambda content, name=name: content.pop(name) for name in sorted(HELD)),
    ],
)
def test_a_sealed_file_that_is_no_checkpoint_is_passed_over(tmp_path, change):
    content = dict.fromkeys(HELD, 1) | {"callbacks": {"BestCheckpoint": dict.fromkeys(("score", "step", "assisted"))}}
    write_sealed(content, tmp_path / "previous.ckpt")
    assert resume_point(tmp_path) == (tmp_path / "previous.ckpt", {})
    changed = read_sealed(tmp_path / "previous.ckpt")
    change(changed)
    write_sealed(changed, tmp_path / "last.ckpt")
    found, skipped = resume_point(tmp_path)
    assert found == tmp_path / "previous.ckpt"
    assert skipped == {tmp_path / "last.ckpt": "is not a checkpoint of this program"}


def test_a_stage_removes_what_it_has_written_and_nothing_else(copy):
    (copy / "metrics.json").unlink()
    for name in ("train.json", "train.safetensors"):
        (copy / "checkpoints" / name).unlink()
    (copy / "checkpoints" / "gan.part").write_text("mine")
    scratch = copy / "checkpoints" / "train"
    (scratch / "mine").mkdir(parents=True)
    (scratch / "notes.txt").write_text("mine")
    with pytest.warns(UserWarning, match="earlier"):
        small_run(copy, *SMALL)
    assert (copy / "checkpoints" / "gan.part").read_text() == "mine"
    aside = copy / "earlier" / "1" / "checkpoints" / "train"
    assert (aside / "notes.txt").read_text() == "mine"
    assert (aside / "mine").is_dir()
