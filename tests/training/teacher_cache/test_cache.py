"""A run with the teacher's signals from a folder ends in the same bits as one without; what is another teacher's is refused."""

import copy
import errno
import functools
import json
import os
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from qat_lightning.commands.train import teacher_cache
from qat_lightning.commands.train.run import prepared, run
from qat_lightning.commands.train.teacher_cache import facts
from qat_lightning.config.builders.models import build_data, build_model, build_student, in_teacher_precision
from qat_lightning.config.builders.training import build_callbacks, build_module, build_trainer, stage_settings
from qat_lightning.config.schema import ConfigError, RunConfig, TeacherPrecision
from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.size import tensors_hash
from qat_lightning.quantization.modules.attention import InstrumentedAttention
from qat_lightning.training.module import QATModule
from qat_lightning.training.teacher_cache import fingerprint
from qat_lightning.training.teacher_cache.cache import TeacherCache
from qat_lightning.training.teacher_cache.fingerprint import MANIFEST
from qat_lightning.training.teacher_cache.tensor_files import read_tensors
from tests.tiny_models import tiny_batch, tiny_model
from tests.training.runs import composed, saved_tiny

IMAGES = ("model=tiny_vit", "data=random_images", "data.size=16", "data.rows=24")
ALONE = ("intervention=none", "intervention_schedule=none", "stages.train.max_steps=6")
once = functools.cache(composed)


@pytest.fixture(scope="module", autouse=True)
def _without_pictures():
    """They take longer than the training, and no bit of the student is in them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qat_lightning.commands.train.run.draw_sections", lambda *_: [])
        yield


@pytest.fixture
def taught(monkeypatch):
    """How often a model has been run for its signals whose every weight is frozen."""
    counted, call = [], SignalCapture.__call__

    def counting(self, batch):
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            counted.append(len(batch["labels"]))
        return call(self, batch)

    monkeypatch.setattr(SignalCapture, "__call__", counting)
    return counted


def small_run(folder, *overrides):
    return run(copy.deepcopy(once("export.packed=false", *overrides)), folder, list(overrides))


def begun(folder, *overrides):
    """Up to where something would be trained."""
    return prepared(copy.deepcopy(once("export.packed=false", *overrides)), folder)


def at(folder):
    return f"teacher_cache={folder}"


# --- the same bits --------------------------------------------------------------------------------------------------


def test_run_has_the_same_bits(tmp_path, taught):
    """All losses, and the map, the context and the output of the teacher in place of the student's."""
    online = small_run(tmp_path / "online")
    first = small_run(tmp_path / "first", at(tmp_path / "cache"))
    count = len(taught)
    second = small_run(tmp_path / "second", at(tmp_path / "cache"))
    assert len(taught) == count + 1  # for the report's pictures
    for cached in (first, second):
        for figure in ("student_hash", "student", "student_last_step", "assisted", "teacher"):
            assert cached[figure] == online[figure], figure
    asked = 6 + 3 * 2 + 8  # two stages, and 24 rows, 16 at a time, after every 2 steps of the first
    told = second["teacher_cache"]
    assert (told["found"], told["computed"], told["damaged"]) == (asked, 0, 0)
    assert first["teacher_cache"]["found"] + first["teacher_cache"]["computed"] == asked
    assert told["bytes"] == sum(path.stat().st_size for path in (tmp_path / "cache").glob("*/*"))
    assert online["teacher_cache"] is None


def trained(config, folder, cache):
    """The student's hash after a few steps, its teacher's signals from the cache."""
    torch.manual_seed(0)
    data = build_data(config)
    data.load()
    model, stage = build_model(config, data), "intervene" if config.intervention else "train"
    student = build_student(config, copy.deepcopy(model), data)
    module = build_module(config, stage, 4, student, data, model, cache)
    if cache is not None:
        cache.claim(facts(config, "content", module.teacher, torch.device("cpu")))
    trainer = build_trainer(config, stage, 4, folder, build_callbacks(config, stage, data), validate_every=2)
    trainer.fit(module, datamodule=data)
    return tensors_hash(student)


@pytest.mark.parametrize(
    "overrides",
    [
        ("losses=logits",),
        ("losses=attention_map", *ALONE),
        ("losses=attention_output", *ALONE),
        ("losses=kdlsq", "trainer.accumulate_grad_batches=2", *ALONE),
        ("trainer.precision=bf16-mixed",),
        ("teacher_precision=bf16",),
        ("model=tiny_gpt2", "data=random_tokens", "losses=ternarybert", *ALONE),  # query, key and value of one layer
        ("model=tiny_llama", "data=random_tokens", "losses=ternarybert", "data.num_workers=1", *ALONE),
        (*IMAGES, "losses=ternarybert", *ALONE),
    ],
    ids=["logits", "map", "output", "kdlsq", "mixed", "bf16", "gpt2", "llama", "images"],
)
def test_student_has_the_same_bits(tmp_path, overrides, taught):
    config = once(*overrides)
    online = trained(config, tmp_path / "online", None)
    first, second = TeacherCache(tmp_path / "cache"), TeacherCache(tmp_path / "cache")
    assert trained(config, tmp_path / "first", first) == online
    taught.clear()
    assert trained(config, tmp_path / "second", second) == online
    assert (taught, second.computed) == ([], 0)
    assert second.found == first.found + first.computed >= 4


def test_batches_that_recur_are_computed_once_in_a_run(tmp_path):
    """24 rows are 3 batches, which 6 and then 8 steps see in any order; 3 validations see 24 other rows, 16 at a time."""
    results = small_run(tmp_path / "run", at(tmp_path / "cache"), "data.reshuffle=false")
    assert results["teacher_cache"]["computed"] == 3 + 2
    assert results["teacher_cache"]["found"] == (6 + 8 - 3) + (3 - 1) * 2
    assert len(list((tmp_path / "cache").glob("*/*.logits.safetensors"))) == 3 + 2


def test_stopped_run_goes_on_with_the_cache_to_the_same_bits(tmp_path, monkeypatch):
    online = small_run(tmp_path / "online")
    left = [9]  # 4 of the teacher's stage, 5 of the 6 of the next

    def die(self, outputs, batch, index):
        left[0] -= 1
        if left[0] < 0:
            raise KeyError("stop")

    words = ("stages.intervene.checkpoint_every=1", at(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(QATModule, "on_train_batch_end", die, raising=False)
        with pytest.raises(KeyError):
            small_run(tmp_path / "run", *words)
    results = small_run(tmp_path / "run", *words)
    assert results["student_hash"] == online["student_hash"]
    assert results["steps"] == online["steps"]


def test_folder_is_no_setting_of_a_result_and_precision_is():
    config, data = once(), build_data(once())
    data.load()
    for key, value, same in (("teacher_cache", "x", True), ("teacher_precision", TeacherPrecision.bf16, False)):
        other = replace(config, **{key: value})
        for stage, alike in (("teacher", True), ("intervene", same), ("train", same)):
            given = [stage_settings(one, stage, 9, data, "content", None) for one in (config, other)]
            assert (given[0] == given[1]) is alike
    assert "teacher_precision" not in stage_settings(config, "train", 9, data, "content", None)  # older folders go on


# --- one teacher's and no other's -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A folder that a run has filled."""
    folder = tmp_path_factory.mktemp("filled") / "cache"
    small_run(folder.parent / "run", at(folder), *ALONE)
    return folder


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("data.rows=32",), "the data's rows"),
        (("data.vocabulary_size=64",), "the data's rows"),
        (("trainer.precision=bf16-mixed",), "trainer.precision: 32-true → bf16-mixed"),
        (("teacher_precision=bf16",), "teacher_precision: None → bf16"),
        (("+model.architecture.layer_norm_eps=1e-9",), "architecture.layer_norm_eps: 1e-12 → 1e-09"),
        (("model=tiny_gpt2", "data=random_tokens", "losses=logits"), "BertForSequenceClassification → GPT2LMHeadModel"),
    ],
)
def test_other_settings_are_refused_before_anything_is_trained(tmp_path, filled, overrides, named):
    with pytest.raises(ConfigError, match="another folder, or remove this one") as refused:
        begun(tmp_path / "run", at(filled), *ALONE, *overrides)
    assert named in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"__version__": "9.9"}, "torch: .* → 9.9"),
        ({"get_float32_matmul_precision": lambda: "high"}, "float32_matmul_precision: highest → high"),
    ],
)
def test_other_libraries_are_refused(tmp_path, filled, monkeypatch, changed, named):
    for name, value in changed.items():
        monkeypatch.setattr(teacher_cache.torch, name, value)
    with pytest.raises(ConfigError, match=named):
        begun(tmp_path / "run", at(filled), *ALONE)


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [("version", "9.9", "transformers: .* → 9.9"), ("_name", "another", "device: cpu .* → another")],
)
def test_another_machine_is_refused(tmp_path, filled, monkeypatch, name, value, named):
    monkeypatch.setattr(teacher_cache, name, lambda _: value)
    with pytest.raises(ConfigError, match=named):
        begun(tmp_path / "run", at(filled), *ALONE)


def test_another_teacher_is_refused_when_it_is_known(tmp_path, filled):
    with pytest.raises(ValueError, match=r"the teacher's weights: .*… → .*…"):
        small_run(tmp_path / "run", at(filled), *ALONE, "stages.teacher.max_steps=5")
    given = f"model.path={saved_tiny(tmp_path / 'model')}"
    with pytest.raises(ConfigError, match="the teacher's weights"):  # at once, where none is trained
        begun(tmp_path / "other", at(filled), *ALONE, given, "stages.teacher.max_steps=0")


def test_every_fact_counts(tmp_path):
    cache = TeacherCache(tmp_path / "cache")
    known = {"a": 1, "b": None, "c": [1, 2]}
    cache.claim(known)
    TeacherCache(tmp_path / "cache").claim(dict(known))
    for other in ({"a": 2}, {"b": 0}, {"c": [2, 1]}, {"d": 1}):
        with pytest.raises(ValueError, match="made otherwise"):
            TeacherCache(tmp_path / "cache").claim(known | other)


def test_facts_are_those_of_the_teacher(tmp_path):
    config, model = once(), tiny_model("bert")
    other = copy.deepcopy(model)
    other.classifier.bias.data[0] += 1
    known = facts(config, "content", model, torch.device("cpu"))
    changed = facts(config, "other", other, torch.device("cpu"))
    assert {name for name in known if known[name] != changed[name]} == {
        "the teacher's weights", "the data's rows, as its tokenizer reads them",
    }  # fmt: skip
    assert json.loads(json.dumps(known)) == known


# --- the folder -----------------------------------------------------------------------------------------------------


def observing(folder, *sites, model=None, known=None):
    cache = TeacherCache(folder)
    cache.claim(known or {"a": 1})
    return cache, cache.of(SignalCapture(model or tiny_model("bert").requires_grad_(False), sites))


def same(one, other):
    return one.keys() == other.keys() and all(
        len(one[site]) == len(other[site]) and all(map(torch.equal, one[site], other[site])) for site in one
    )


@torch.no_grad()
def test_fewer_sites_are_found_and_only_missing_ones_are_written(tmp_path, taught):
    batch = tiny_batch("bert")
    _, hidden = observing(tmp_path, "hidden")
    expected = hidden.observed(batch)
    assert same(hidden(batch), expected)
    files = {path.name.split(".", 1)[1]: path.stat().st_ino for path in tmp_path.glob("*/*")}
    assert files.keys() == {"hidden.safetensors", "logits.safetensors"}
    taught.clear()
    cache, logits = observing(tmp_path)
    assert same(logits(batch), {"logits": expected["logits"]})
    assert (taught, cache.found) == ([], 1)
    cache, more = observing(tmp_path, "hidden", "attention.output")
    assert same(more(batch), more.observed(batch))
    assert (cache.found, cache.computed) == (0, 1)
    later = {path.name.split(".", 1)[1]: path.stat().st_ino for path in tmp_path.glob("*/*")}
    assert later == files | {"attention.output.safetensors": later["attention.output.safetensors"]}


@torch.no_grad()
def test_another_batch_is_another(tmp_path):
    cache, observe = observing(tmp_path)
    batch = tiny_batch("bert")
    mask, tokens = batch["attention_mask"].clone(), batch["input_ids"].clone()
    mask[0, -1] ^= 1
    tokens[-1, 0] += 1
    several = [
        batch,
        {**batch, "attention_mask": mask},
        {**batch, "input_ids": tokens},
        {name: value for name, value in batch.items() if name != "attention_mask"},
        {**batch, "token_type_ids": torch.zeros_like(tokens)},
        {name: value.flip(0) for name, value in batch.items()},
        {name: value[:, :-1] if value.dim() > 1 else value for name, value in batch.items()},
        {**batch, "input_ids": tokens.int()},
    ]
    for one in several:
        assert same(observe(one), observe.observed(one))
    assert (cache.found, cache.computed) == (0, len(several))
    assert same(
        observe({**batch, "labels": batch["labels"] + 1, "id": tokens}), observe.observed(batch)
    )  # nobody reads them
    assert cache.found == 1


@torch.no_grad()
def test_attention_computed_another_way_is_another(tmp_path):
    """The fused kernels round otherwise than the one that makes its maps."""
    from qat_lightning.models.convert import open_attention_for

    model, batch = tiny_model("bert").requires_grad_(False), tiny_batch("bert")
    ways = [set(), {"attention.context"}, {"attention.context", "attention.probs"}]
    for count, sites in enumerate(ways, 1):
        cache, observe = observing(tmp_path, *sites, model=open_attention_for(model, sites))
        assert same(observe(batch), observe.observed(batch))
        assert (cache.found, cache.computed) == (0, 1)
        assert len(list(tmp_path.glob("*/*.logits.safetensors"))) == count
    for core in model.modules():
        if isinstance(core, InstrumentedAttention):
            core.lean = True
    lean, _ = observing(tmp_path, "attention.context", model=model)[1], None
    assert same(lean(batch), lean.observed(batch))
    assert lean.cache.found == 1


@torch.no_grad()
def test_damaged_file_is_named_and_computed_again(tmp_path):
    _, observe = observing(tmp_path, "hidden")
    batch = tiny_batch("bert")
    expected = observe(batch)
    (path,) = tmp_path.glob("*/*.hidden.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)
    cache, observe = observing(tmp_path, "hidden")
    with pytest.warns(UserWarning, match=rf"{path} is damaged.*written again"):
        assert same(observe(batch), expected)
    assert cache.damaged == cache.computed == 1
    assert "1 damaged" in cache.told()
    assert all(map(torch.equal, read_tensors(path), expected["hidden"]))


def test_batch_before_the_folder_is_claimed(tmp_path):
    observe = TeacherCache(tmp_path).of(SignalCapture(tiny_model("bert")))
    with pytest.raises(ValueError, match="claim"):
        observe(tiny_batch("bert"))


def test_what_is_no_cache_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("")
    for name, told in (("mine", "holds files and no teacher.json"), ("file", "is a file: give a folder")):
        with pytest.raises(ConfigError, match=told):
            begun(tmp_path / "run", at(tmp_path / name), *ALONE)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["", "{", "[1]", "nonsense"])
def test_damaged_manifest(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(ValueError, match=f"{MANIFEST} is damaged: remove its folder"):
        TeacherCache(tmp_path).check({})


def test_two_that_begin_at_once_agree_or_one_is_refused(tmp_path, monkeypatch):
    """The other has been first between the look and the writing."""
    check = fingerprint.check_facts

    def late(folder, known, unknown=()):
        check(folder, known, unknown)
        monkeypatch.undo()
        TeacherCache(tmp_path).claim({"a": 2})

    monkeypatch.setattr(fingerprint, "check_facts", late)
    with pytest.raises(ValueError, match="a: 2 → 1"):
        TeacherCache(tmp_path).claim({"a": 1})
    assert json.loads((tmp_path / MANIFEST).read_text()) == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_what_a_killed_process_was_writing_is_cleared_a_day_later(tmp_path):
    cache = TeacherCache(tmp_path)
    cache.claim({"a": 1})
    old, new = (tmp_path / "ab" / f".x.safetensors.{digit * 16}.part" for digit in "12")
    old.parent.mkdir()
    for path in (old, new):
        path.write_text("half")
    os.utime(old, (time.time() - 90_000,) * 2)
    cache.claim({"a": 1})
    assert (old.exists(), new.exists()) == (False, True)


# --- refused --------------------------------------------------------------------------------------------------------


def test_images_that_are_drawn_anew_are_refused(tmp_path):
    config = once(*IMAGES, at(tmp_path / "cache"))
    data = build_data(config)
    data.load()
    data.augmentation = {"flip": nn.Identity()}
    with pytest.raises(ConfigError, match="data/augmentation=none"):
        teacher_cache.find_cache(config, data, "content", build_model(config, data), torch.device("cpu"))


@pytest.mark.parametrize("key", ["teacher_cache=x", "teacher_precision=bf16"])
@pytest.mark.parametrize("reason", ["teacher=none", "no loss or intervention asks the teacher"])
def test_nobody_to_ask(key, reason):
    with pytest.raises(ConfigError, match=rf"^{key} and {reason}: leave {key.split('=')[0]} out"):
        composed(key, "losses=task", *ALONE, *(["teacher=none"] if reason == "teacher=none" else []))


@pytest.mark.parametrize("precision", ["64-true", "16-mixed", "16-true"])
def test_precisions_that_do_not_go_together(precision):
    with pytest.raises(ConfigError, match=f"goes with trainer.precision=32-true, .* and not with {precision}"):
        composed("teacher_precision=bf16", f"trainer.precision={precision}")


def test_folder_without_a_name():
    with pytest.raises(ConfigError, match="teacher_cache is empty"):
        composed("teacher_cache=' '")


def test_disk_that_is_too_small_is_told_before_anything_is_trained(tmp_path, monkeypatch):
    disk = teacher_cache.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda place: disk._replace(free=1000))
    with pytest.raises(
        ConfigError, match=r"will take about .* KiB, and its disk has 1000 B left.*data.reshuffle=false"
    ):
        begun(tmp_path / "run", at(tmp_path / "cache"), *ALONE)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("words", [(), ("data.reshuffle=false",), ("losses=logits", *ALONE)])
def test_room_is_foreseen(tmp_path, words, monkeypatch):
    """Images are all of one size, so what a run takes is known to the byte; a file's own header is not counted."""
    told, measure = [], teacher_cache._foreseen
    monkeypatch.setattr(teacher_cache, "_foreseen", lambda *given: told.append(measure(*given)) or told[-1])
    words = (*IMAGES, "data.batch_size=6", "data.evaluation_batch_size=6", *words)
    small_run(tmp_path / "run", at(tmp_path / "cache"), *words)
    taken = sum(signal.nbytes for path in (tmp_path / "cache").glob("*/*") for signal in read_tensors(path))
    assert told == [taken]


def test_room_for_rows_of_many_lengths_is_foreseen_by_their_batches(tmp_path, monkeypatch):
    """Maps grow with the square of the length, so what the longest row takes says little; here to a quarter."""
    told, measure = [], teacher_cache._foreseen
    monkeypatch.setattr(teacher_cache, "_foreseen", lambda *given: told.append(measure(*given)) or told[-1])
    words = (
        "data.length=48",
        "data.rows=120",
        "data.group_by_length=true",
        "losses=attention_map",
        "stages.train.max_steps=15",
    )
    small_run(tmp_path / "run", at(tmp_path / "cache"), *ALONE, *words)
    taken = sum(signal.nbytes for path in (tmp_path / "cache").glob("*/*") for signal in read_tensors(path))
    assert told == [pytest.approx(taken, rel=0.25)]


def test_a_folder_that_cannot_be_is_told_before_anything_is_trained(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"teacher_cache='.*file/below' cannot be written to: .*file is no folder"):
        begun(tmp_path / "run", at(tmp_path / "file" / "below"), *ALONE)


def test_a_disk_that_is_full_in_the_middle_is_told_with_the_remedy(tmp_path, monkeypatch):
    _, kept = observing(tmp_path)

    def full(path, tensors):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("qat_lightning.training.teacher_cache.cache.write_tensors", full)
    with pytest.raises(ValueError, match=r"teacher_cache=.* \(No space left on device\): make room there, or leave"):
        kept(tiny_batch("bert"))


# --- a teacher in bfloat16 ------------------------------------------------------------------------------------------


def test_teacher_in_bfloat16_is_a_copy(tmp_path):
    config = once("teacher_precision=bf16")
    data = build_data(config)
    data.load()
    full, student = build_model(config, data), build_model(config, data)
    before = copy.deepcopy(full.state_dict())
    module = build_module(config, "train", 4, student, data, full)
    batch = data.example_batch(4)
    signals = module.distillation.teacher_signals(batch)
    assert {signal.dtype for layers in signals.values() for signal in layers} == {torch.bfloat16}
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    assert all(torch.equal(before[name], tensor) for name, tensor in full.state_dict().items())
    assert module.full_teacher is full
    assert module.teacher is not full
    own = module.answer(batch)["logits"][0]
    assert own.dtype == torch.float32
    with torch.no_grad():
        exact = SignalCapture(full)(batch)["logits"][0]
    assert (signals["logits"][0].float() - exact).abs().max() < 0.05 * exact.abs().max()
    loss = torch.stack(
        list(module.distillation.weighted(module.distillation.capture_student(batch), signals, batch).values())
    ).sum()
    assert loss.dtype == torch.float32
    loss.backward()


def test_without_a_word_the_teacher_is_itself():
    config, model = once(), tiny_model("bert")
    assert in_teacher_precision(config, model) is model


def test_angles_of_rotary_positions_stay_as_they_are():
    model = tiny_model("llama")
    converted = in_teacher_precision(RunConfig(teacher_precision=TeacherPrecision.bf16), model)
    assert {parameter.dtype for parameter in converted.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in converted.buffers()} == {torch.float32}
    assert torch.equal(converted.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)


def test_figures_of_the_teacher_stay_those_in_float32(tmp_path):
    online, low = (
        small_run(tmp_path / name, *words) for name, words in (("a", ()), ("b", ("teacher_precision=bf16",)))
    )
    assert low["teacher"] == online["teacher"]
    assert low["untrained"] == online["untrained"]
    assert low["student_hash"] != online["student_hash"]
    teachers = [(tmp_path / name / "checkpoints" / "teacher.safetensors").read_bytes() for name in "ab"]
    assert teachers[0] == teachers[1]


def test_both_are_off_unless_asked_for():
    assert (once().teacher_precision, once().teacher_cache) == (None, None)
