"""A run with a teacher cache ends with the same bits as one without; the cache of another teacher is refused."""

import copy
import errno
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from qat_lightning.commands.train import teacher_cache
from qat_lightning.commands.train.run import prepared
from qat_lightning.commands.train.teacher_cache import teacher_facts
from qat_lightning.config.builders.models import build_data, build_model, build_student, in_teacher_precision
from qat_lightning.config.builders.training import build_callbacks, build_module, build_trainer, stage_settings
from qat_lightning.config.schema import ConfigError, RunConfig, TeacherPrecision
from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.convert import open_attention_for
from qat_lightning.models.size import tensors_hash
from qat_lightning.quantization.modules.attention import InstrumentedAttention
from qat_lightning.training.module import QATModule
from qat_lightning.training.teacher_cache import cache as cache_module
from qat_lightning.training.teacher_cache.cache import MANIFEST, TeacherCache
from qat_lightning.training.teacher_cache.tensor_files import read_tensors
from tests.tiny_models import tiny_batch, tiny_model
from tests.training import runs
from tests.training.runs import composed, saved_tiny

IMAGES = ("model=tiny_vit", "data=random_images", "data.size=16", "data.rows=24")
TRAIN_ONLY = ("intervention=none", "intervention_schedule=none", "stages.train.max_steps=6")


@pytest.fixture
def teacher_runs(monkeypatch):
    """A list that grows by the rows of each batch that a frozen model computes."""
    rows, call = [], SignalCapture.__call__

    def counting(self, batch):
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            rows.append(len(batch["labels"]))
        return call(self, batch)

    monkeypatch.setattr(SignalCapture, "__call__", counting)
    return rows


def small_run(folder, *overrides):
    return runs.small_run(folder, "export.packed=false", *overrides)


def prepare(folder, *overrides):
    """Begin a run up to its first training step."""
    return prepared(composed("export.packed=false", *overrides), folder)


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    """The results of a run without a cache."""
    return small_run(tmp_path_factory.mktemp("online"))


# --- the same bits --------------------------------------------------------------------------------------------------


def test_whole_runs_have_the_same_bits(tmp_path, teacher_runs, online):
    """The first run writes, is stopped and continues; the second reads everything."""
    cache = f"teacher_cache={tmp_path / 'cache'}"
    left = [9]  # 4 of the teacher's stage, 5 of the 6 of the next

    def stop(self, outputs, batch, index):
        left[0] -= 1
        if left[0] < 0:
            raise KeyError("stop")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QATModule, "on_train_batch_end", stop, raising=False)
        with pytest.raises(KeyError):
            small_run(tmp_path / "first", cache, "stages.intervene.checkpoint_every=1")
    first = small_run(tmp_path / "first", cache, "stages.intervene.checkpoint_every=1")
    count = len(teacher_runs)
    second = small_run(tmp_path / "second", cache)
    assert len(teacher_runs) == count + 1 + 2  # for the report's plots, and for its answers to 24 rows, 16 at a time
    for cached in (first, second):
        for figure in ("student_hash", "student", "student_last_step", "assisted", "teacher", "steps"):
            assert cached[figure] == online[figure], figure
    batches = 6 + 3 * 2 + 8  # two stages; 24 rows, 16 at a time, after every 2 steps of the first
    figures = second["teacher_cache"]
    assert (figures["found"], figures["computed"], figures["damaged"]) == (batches, 0, 0)
    assert figures["bytes"] == sum(path.stat().st_size for path in (tmp_path / "cache").glob("*/*"))
    assert online["teacher_cache"] is None


def trained(config, folder, cache):
    """Train a few steps with the teacher's signals from the cache; returns the student's hash."""
    torch.manual_seed(0)
    data = build_data(config)
    data.load()
    model, stage = build_model(config, data), "intervene" if config.intervention else "train"
    student = build_student(config, copy.deepcopy(model), data)
    module = build_module(config, stage, 4, student, data, model, cache)
    if cache is not None:
        cache.claim(teacher_facts(config, "content", module.teacher, torch.device("cpu")))
    trainer = build_trainer(config, stage, 4, folder, build_callbacks(config, stage, data), validate_every=2)
    trainer.fit(module, datamodule=data)
    return tensors_hash(student)


@pytest.mark.parametrize(
    "overrides",
    [
        ("losses=kdlsq", "trainer.accumulate_grad_batches=2", *TRAIN_ONLY),
        ("trainer.precision=bf16-mixed",),
        ("teacher_precision=bf16",),
        ("model=tiny_gpt2", "data=random_tokens", "losses=ternarybert", *TRAIN_ONLY),  # one layer for query, key, value
        ("model=tiny_llama", "data=random_tokens", "losses=ternarybert", "data.num_workers=1", *TRAIN_ONLY),
        (*IMAGES, "losses=ternarybert", *TRAIN_ONLY),
    ],
    ids=["kdlsq", "mixed", "bf16", "gpt2", "llama", "images"],
)
def test_student_has_the_same_bits(tmp_path, overrides, teacher_runs):
    config = composed(*overrides)
    without = trained(config, tmp_path / "online", None)
    first, second = TeacherCache(tmp_path / "cache"), TeacherCache(tmp_path / "cache")
    assert trained(config, tmp_path / "first", first) == without
    teacher_runs.clear()
    assert trained(config, tmp_path / "second", second) == without
    assert (teacher_runs, second.computed) == ([], 0)
    assert second.found == first.found + first.computed >= 4


def test_the_cache_is_not_a_setting_of_a_result_and_the_precision_is():
    config, data = composed(), build_data(composed())
    data.load()
    assert (config.teacher_precision, config.teacher_cache) == (None, None)
    for key, value, same in (("teacher_cache", "x", True), ("teacher_precision", TeacherPrecision.bf16, False)):
        other = replace(config, **{key: value})
        for stage, equal in (("teacher", True), ("intervene", same), ("train", same)):
            settings = [stage_settings(one, stage, 9, data, "content", None) for one in (config, other)]
            assert (settings[0] == settings[1]) is equal


# --- one teacher for each folder ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """The override of a cache folder that a run has filled."""
    folder = tmp_path_factory.mktemp("filled") / "cache"
    small_run(folder.parent / "run", f"teacher_cache={folder}", *TRAIN_ONLY)
    return f"teacher_cache={folder}"


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("data.rows=32",), "the data's rows"),
        (("trainer.precision=bf16-mixed",), "trainer.precision: 32-true → bf16-mixed"),
        (("teacher_precision=bf16",), "teacher_precision: None → bf16"),
        (("+model.architecture.layer_norm_eps=1e-9",), "architecture.layer_norm_eps: 1e-12 → 1e-09"),
        (("model=tiny_gpt2", "data=random_tokens", "losses=logits"), "BertForSequenceClassification → GPT2LMHeadModel"),
    ],
)
def test_other_settings_are_refused_before_training(tmp_path, filled, overrides, named):
    with pytest.raises(ConfigError, match="teacher_cache") as refused:
        prepare(tmp_path / "run", filled, *TRAIN_ONLY, *overrides)
    assert named in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_another_torch_or_device_is_refused(tmp_path, filled, monkeypatch):
    monkeypatch.setattr(teacher_cache.torch, "__version__", "9.9")
    monkeypatch.setattr(teacher_cache, "version", lambda _: "9.8")
    monkeypatch.setattr(teacher_cache.torch.backends.cpu, "get_cpu_capability", lambda: "another")
    with pytest.raises(ConfigError, match=r"device: cpu .* → cpu another.*torch: .* → 9.9.*transformers: .* → 9.8"):
        prepare(tmp_path / "run", filled, *TRAIN_ONLY)


def test_another_teacher_is_refused_when_its_weights_are_known(tmp_path, filled):
    with pytest.raises(ValueError, match=r"the teacher's weights: .*… → .*…"):
        small_run(tmp_path / "run", filled, *TRAIN_ONLY, "stages.teacher.max_steps=5")
    given = f"model.path={saved_tiny(tmp_path / 'model')}"
    with pytest.raises(ConfigError, match="the teacher's weights"):  # at once, where no teacher is trained
        prepare(tmp_path / "other", filled, *TRAIN_ONLY, given, "stages.teacher.max_steps=0")


def test_every_fact_counts(tmp_path):
    known = {"a": 1, "b": None, "c": [1, 2]}
    TeacherCache(tmp_path / "cache").claim(known)
    TeacherCache(tmp_path / "cache").claim(dict(known))
    for other in ({"a": 2}, {"b": 0}, {"c": [2, 1]}, {"d": 1}):
        with pytest.raises(ValueError, match=f"{next(iter(other))}: "):
            TeacherCache(tmp_path / "cache").claim(known | other)


def test_facts_are_those_of_the_teacher_and_its_data():
    config, model = composed(), tiny_model("bert")
    other = copy.deepcopy(model)
    other.classifier.bias.data[0] += 1
    facts = teacher_facts(config, "content", model, torch.device("cpu"))
    changed = teacher_facts(config, "other", other, torch.device("cpu"))
    assert len([name for name in facts if facts[name] != changed[name]]) == 2
    assert json.loads(json.dumps(facts)) == facts


# --- the folder -----------------------------------------------------------------------------------------------------


def cached(folder, *sites, model=None):
    cache = TeacherCache(folder)
    cache.claim({"a": 1})
    return cache, cache.wrap(SignalCapture(model or tiny_model("bert").requires_grad_(False), sites))


def same(one, other):
    return one.keys() == other.keys() and all(
        len(one[site]) == len(other[site]) and all(map(torch.equal, one[site], other[site])) for site in one
    )


@torch.no_grad()
def test_only_missing_sites_are_computed_and_written(tmp_path, teacher_runs):
    batch = tiny_batch("bert")
    _, hidden = cached(tmp_path, "hidden")
    expected = hidden.capture(batch)
    assert same(hidden(batch), expected)
    files = {path.name.split(".", 1)[1]: path.stat().st_ino for path in tmp_path.glob("*/*")}
    assert files.keys() == {"hidden.safetensors", "logits.safetensors"}
    teacher_runs.clear()
    cache, logits = cached(tmp_path)
    assert same(logits(batch), {"logits": expected["logits"]})
    assert (teacher_runs, cache.found) == ([], 1)
    cache, more = cached(tmp_path, "hidden", "attention.output")
    assert same(more(batch), more.capture(batch))
    assert (cache.found, cache.computed) == (0, 1)
    later = {path.name.split(".", 1)[1]: path.stat().st_ino for path in tmp_path.glob("*/*")}
    assert later == files | {"attention.output.safetensors": later["attention.output.safetensors"]}


@torch.no_grad()
def test_each_input_of_the_model_counts_and_nothing_else(tmp_path):
    cache, capture = cached(tmp_path)
    batch = tiny_batch("bert")
    mask, tokens = batch["attention_mask"].clone(), batch["input_ids"].clone()
    mask[0, -1] ^= 1
    tokens[-1, 0] += 1
    different = [
        batch,
        {**batch, "attention_mask": mask},
        {**batch, "input_ids": tokens},
        {name: value for name, value in batch.items() if name != "attention_mask"},
        {**batch, "token_type_ids": torch.zeros_like(tokens)},
        {name: value.flip(0) for name, value in batch.items()},
        {name: value[:, :-1] if value.dim() > 1 else value for name, value in batch.items()},
        {**batch, "input_ids": tokens.int()},
    ]
    for one in different:
        assert same(capture(one), capture.capture(one))
    assert (cache.found, cache.computed) == (0, len(different))
    capture({**batch, "labels": batch["labels"] + 1, "id": tokens})
    assert cache.found == 1


@torch.no_grad()
def test_the_way_of_computing_attention_counts(tmp_path):
    """Fused kernels round differently from the one that computes the attention map."""
    model, batch = tiny_model("bert").requires_grad_(False), tiny_batch("bert")
    ways = [set(), {"attention.context"}, {"attention.context", "attention.probs"}]
    for count, sites in enumerate(ways, 1):
        cache, capture = cached(tmp_path, *sites, model=open_attention_for(model, sites))
        assert same(capture(batch), capture.capture(batch))
        assert (cache.found, cache.computed) == (0, 1)
        assert len(list(tmp_path.glob("*/*.logits.safetensors"))) == count
    for core in model.modules():
        if isinstance(core, InstrumentedAttention):
            core.lean = True
    cache, lean = cached(tmp_path, "attention.context", model=model)
    assert same(lean(batch), lean.capture(batch))
    assert cache.found == 1


@torch.no_grad()
def test_a_damaged_file_is_computed_again(tmp_path):
    _, capture = cached(tmp_path, "hidden")
    expected = capture(tiny_batch("bert"))
    (path,) = tmp_path.glob("*/*.hidden.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)
    cache, capture = cached(tmp_path, "hidden")
    with pytest.warns(UserWarning, match=f"{path} is damaged"):
        assert same(capture(tiny_batch("bert")), expected)
    assert cache.damaged == cache.computed == 1
    assert all(map(torch.equal, read_tensors(path), expected["hidden"]))


def test_a_batch_before_the_folder_is_claimed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="claim"):
        TeacherCache(tmp_path).wrap(SignalCapture(tiny_model("bert")))(tiny_batch("bert"))


@pytest.mark.parametrize("content", ["", "[1]", "nonsense"])
def test_a_damaged_manifest_is_refused(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(ValueError, match=MANIFEST):
        TeacherCache(tmp_path).check({})


def test_of_two_runs_that_begin_at_once_the_second_is_checked(tmp_path, monkeypatch):
    """The other run writes its facts between the check and the writing."""
    write = cache_module.write_once

    def late(place, text):
        write(place, json.dumps({"a": 2}))
        write(place, text)

    monkeypatch.setattr(cache_module, "write_once", late)
    with pytest.raises(ValueError, match="a: 2 → 1"):
        TeacherCache(tmp_path).claim({"a": 1})
    assert json.loads((tmp_path / MANIFEST).read_text()) == {"a": 2}


# --- refused --------------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_a_cache_is_refused_before_training(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("mine")
    for name in ("mine", "file", "file/below"):
        with pytest.raises(ConfigError, match="teacher_cache="):
            prepare(tmp_path / "run", f"teacher_cache={tmp_path / name}", *TRAIN_ONLY)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_augmented_images_are_refused(tmp_path):
    config = composed(*IMAGES, f"teacher_cache={tmp_path / 'cache'}")
    data = build_data(config)
    data.load()
    data.augmentation = {"flip": nn.Identity()}
    with pytest.raises(ConfigError, match="data/augmentation=none"):
        teacher_cache.find_cache(config, data, "content", build_model(config, data), torch.device("cpu"))


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("teacher_cache=x", "losses=task", "teacher=none", *TRAIN_ONLY), "teacher_cache"),
        (("teacher_precision=bf16", "losses=task", "teacher=none", *TRAIN_ONLY), "teacher_precision"),
        (("teacher_cache=x", "losses=task", *TRAIN_ONLY), "teacher_cache"),
        (("teacher_precision=bf16", "trainer.precision=16-mixed"), "trainer.precision"),
        (("teacher_cache=' '",), "teacher_cache"),
    ],
)
def test_settings_without_effect_or_that_conflict_are_refused(overrides, named):
    with pytest.raises(ConfigError, match=named):
        composed(*overrides)


def test_a_disk_that_is_too_small_is_reported_before_training(tmp_path, monkeypatch):
    disk = teacher_cache.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda place: disk._replace(free=1000))
    with pytest.raises(ConfigError, match=r"teacher_cache=.* KiB.*1000 B.*data.reshuffle=false"):
        prepare(tmp_path / "run", f"teacher_cache={tmp_path / 'cache'}", *TRAIN_ONLY)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("words", "tolerance"),
    [
        # Images have one size, so the bytes are known exactly, without the headers of the files.
        ((*IMAGES, "data.batch_size=6", "data.evaluation_batch_size=6", "data.reshuffle=false"), 0),
        # Maps grow with the square of the length.
        ((*TRAIN_ONLY, "data.length=48", "data.rows=120", "data.group_by_length=true", "losses=attention_map",
          "stages.train.max_steps=15"), 0.25),
    ],
    ids=["images", "lengths"],
)  # fmt: skip
def test_the_bytes_of_a_run_are_estimated(tmp_path, words, tolerance, monkeypatch):
    estimates, estimate = [], teacher_cache._estimated_bytes
    monkeypatch.setattr(
        teacher_cache, "_estimated_bytes", lambda *given: estimates.append(estimate(*given)) or estimates[-1]
    )
    results = small_run(tmp_path / "run", f"teacher_cache={tmp_path / 'cache'}", *words)
    taken = sum(signal.nbytes for path in (tmp_path / "cache").glob("*/*") for signal in read_tensors(path))
    assert estimates == [pytest.approx(taken, rel=tolerance)]
    if not tolerance:  # 4 batches in any order, then 4 of the validation: each is computed once
        assert results["teacher_cache"]["computed"] == 4 + 4


def test_a_disk_that_fills_up_is_reported_with_the_remedy(tmp_path, monkeypatch):
    _, capture = cached(tmp_path)

    def full(path, tensors):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module, "write_tensors", full)
    with pytest.raises(ValueError, match=r"teacher_cache=.*No space left on device"):
        capture(tiny_batch("bert"))


# --- a teacher in bfloat16 ------------------------------------------------------------------------------------------


def test_a_teacher_in_bfloat16_is_a_copy():
    config = composed("teacher_precision=bf16")
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
    with torch.no_grad():
        exact = SignalCapture(full)(batch)["logits"][0]
    assert (signals["logits"][0].float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_rotary_angles_stay_in_float32():
    model = tiny_model("llama")
    converted = in_teacher_precision(RunConfig(teacher_precision=TeacherPrecision.bf16), model)
    assert {parameter.dtype for parameter in converted.parameters()} == {torch.bfloat16}
    assert torch.equal(converted.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    assert in_teacher_precision(composed(), model) is model


def test_scores_of_the_teacher_stay_those_in_float32(tmp_path, online):
    low = small_run(tmp_path, "teacher_precision=bf16")
    assert low["teacher"] == online["teacher"]
    assert low["untrained"] == online["untrained"]
    assert low["student_hash"] != online["student_hash"]
