"""Hostile files and configurations as data: how each is made, what reads it, and the words in which it is refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from qat_lightning.analysis.result_files import read_landscapes, read_spectra
from qat_lightning.commands.cli import _recorded_overrides
from qat_lightning.commands.evaluate import evaluate
from qat_lightning.commands.train.run_directory import check_own, lock_folder
from qat_lightning.config.allowed_targets import allowing
from qat_lightning.config.builders.models import build_data, build_model
from qat_lightning.config.builders.training import build_callbacks, build_loggers, build_trainer
from qat_lightning.config.instantiate import create
from qat_lightning.config.run_config import read_run
from qat_lightning.config.schema import ModelConfig, resolve
from qat_lightning.config.validation import check
from qat_lightning.data.dataset_files import read_split
from qat_lightning.data.hub import LARGEST_VOCABULARY
from qat_lightning.data.tokenizers import read_tokenizer
from qat_lightning.exporters.packed.reader import load_packed
from qat_lightning.exporters.packed.untrusted_files import LARGEST_JSON as LARGEST_PACKED
from qat_lightning.io.documents import LARGEST_JSON, LARGEST_YAML
from qat_lightning.training.checkpoints.stage_result import read_outcome
from qat_lightning.training.stage import Stage
from qat_lightning.training.teacher_cache.cache import TeacherCache
from qat_lightning.training.teacher_cache.tensor_files import read_tensors
from tests.security import plant
from tests.training.runs import composed

NOT_ALLOWED = r"_target_=.*(is not allowed|does not exist)"
UNREADABLE = "last.ckpt.*is not a checkpoint of this program"
CODES, BIAS = "bert.pooler.dense.weight.codes", "classifier.bias"
CODE = {
    "AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model",
    "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"],
}  # fmt: skip
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Case:
    """`make` writes what a stranger sends into an empty folder (and returns it), `read` is what a user would do with it."""

    make: Callable[[Path], Any]
    read: Callable[[Any], Any]
    words: str = ""


def case(words: str, read: Callable[[Any], Any], make: Callable[..., Any], *given: Any, **named: Any) -> Case:
    return Case(lambda folder: make(folder, *given, **named), read, words)


# --- what a user does with what was sent


def made(node: Any) -> Any:
    return create(node, "losses.evil")


def made_from_omegaconf(node: Any) -> Any:
    return made(OmegaConf.create(node).x)


def checked(changes: dict[str, Any]) -> None:
    check(resolve(OmegaConf.merge(OmegaConf.structured(composed()), changes)))


def data_of(node: dict[str, Any]) -> Any:
    return build_data(replace(composed(), data=composed().data | node))


def callbacks_of(node: dict[str, Any]) -> Any:
    config = replace(composed(), callbacks={"evil": node})
    return build_callbacks(config, "train", build_data(config))


def loggers_of(node: dict[str, Any]) -> Any:
    return build_loggers(replace(composed(), logger={"evil": node}), "train", Path(os.devnull))


def model_of(folder: Path | str, **settings: Any) -> Any:
    config = composed("data.num_labels=3")
    config.model = ModelConfig(**{"path": str(folder), "pretrained": True} | settings)
    return build_model(config, build_data(config))


TRUSTED = partial(model_of, trust_remote_code=True, revision=COMMIT)
UNPICKLED = partial(model_of, pickled_weights=True)


def tokenizer_of(folder: Path) -> Any:
    return read_tokenizer(str(folder), max_length=16)


def rows_of(folder: Path) -> Any:
    return read_split(str(folder), None, "train")


def continued(folder: Path) -> None:
    """The user's own command in that folder, up to where it begins."""
    with lock_folder(folder):
        check_own(folder, "run")


def _stage(folder: Path) -> tuple[Stage, Callable[[], Any]]:
    """The teacher's stage in that folder, and what trains it."""
    config = composed()
    data, stage = build_data(config), Stage("teacher", folder, {})
    data.load()
    trainer = build_trainer(config, "teacher", 1, folder, stage.callbacks(data, 1))
    return stage, lambda: stage.fit(trainer, plant.OneWeight(), data, keep_best=False)


def resumed(folder: Path) -> Any:
    """The stage goes on from the `last.ckpt` that was planted."""
    stage, fit = _stage(folder)
    assert stage.unfinished == folder / "checkpoints/teacher/last.ckpt"
    return fit()


def refused_or_restarted(folder: Path) -> None:
    """Accept also that the log names a file that is not a checkpoint, and the stage starts again."""
    stage, fit = _stage(folder)
    fit()
    raise ValueError(f"passed over: {stage.skipped}")


# --- cases


def node(content: Any, words: str = NOT_ALLOWED, read: Callable[[Any], Any] = made) -> Case:
    """A part of a configuration, with the command in place of `COMMAND`."""
    return case(words, read, plant.filled, content)


def target(path: Any, /, **arguments: Any) -> Case:
    """Return a configuration with that `_target_` in place of a loss, with arguments that would do harm."""
    return node({"_target_": path, "command": plant.COMMAND} | arguments)


def model_case(words: str, **config: Any) -> Case:
    return case(words, model_of, plant.model, **config)


def run_text(text: str, words: str) -> Case:
    return case(words, read_run, lambda folder: plant.run_folder(folder, plant.filled(folder, text)))


def run_value(words: str, **changes: Any) -> Case:
    return case(words, read_run, plant.run_folder, **changes)


TARGETS = {
    "a command": target("os.system"),
    "a command by its C module": target("posix.system"),
    "a process": target("subprocess.Popen", args=["touch", "x"]),
    "eval": target("builtins.eval"),
    "import by name": target("builtins.__import__", name="antigravity"),
    "importlib": target("importlib.import_module", name="antigravity"),
    "alias through logging": target("logging.os.system"),
    "alias through this package": target("qat_lightning.commands.cli.os.system"),
    "alias of a class": target("qat_lightning.config.instantiate.importlib.import_module", name="antigravity"),
    "alias of instantiate": target("qat_lightning.config.instantiate.instantiate", config={}),
    "alias of get_object": target("qat_lightning.config.instantiate.get_object", path="os.system"),
    "alias of a path": target("qat_lightning.models.convert.Path"),
    "alias of load_dataset": target("qat_lightning.data.dataset_files.load_dataset", path="evil/data"),
    "Lightning makes classes of names": target(
        "lightning.pytorch.cli.instantiate_class", args=["touch", "canary"], init={"class_path": "subprocess.Popen"}
    ),
    "Lightning's trainer": target("lightning.pytorch.Trainer"),
    "Lightning reads a checkpoint": target("lightning.pytorch.LightningModule.load_from_checkpoint"),
    "this package's module reads a checkpoint": target(
        "qat_lightning.training.module.QATModule.load_from_checkpoint", checkpoint_path="evil.ckpt"
    ),
    "Lightning reads hyperparameters": target("lightning.pytorch.core.saving.load_hparams_from_yaml", config_yaml="x"),
    "torch.hub.load": target("torch.hub.load", repo_or_dir="evil/repository", model="evil"),
    "torch.load": target("torch.load", f="evil.ckpt", weights_only=False),
    "torch.serialization.load": target("torch.serialization.load", f="evil.ckpt", weights_only=False),
    "numpy.load": target("numpy.load", file="evil.npy", allow_pickle=True),
    "pickle.loads": target("pickle.loads"),
    "runpy": target("runpy.run_path", path_name="evil.py"),
    "a metaclass": target("torch.optim.Adam.__class__"),
    "a module's globals": target("qat_lightning.distillation.losses.FeatureMatchingLoss.__init__.__globals__"),
    "a module": target("qat_lightning.distillation.losses"),
    "torch's wrapper of any module": target("torch.optim.swa_utils.AveragedModel"),
    "a metric that loads a model": target("torchmetrics.text.BERTScore", model_name_or_path="evil/model"),
    "a metric that downloads": target("torchmetrics.multimodal.CLIPScore", model_name_or_path="evil/model"),
    "a whole run": target("qat_lightning.commands.train.run.run"),
    "the command line": target("qat_lightning.commands.cli.train"),
    "a reader of files": target("qat_lightning.data.tokenizers.read_tokenizer", path="evil/model"),
    "a writer of files": target("qat_lightning.training.callbacks.ResumeCheckpoint", path="canary", every=1),
    "a target with an empty part": target("qat_lightning..losses.FeatureMatchingLoss"),
    "an empty target": target(""),
    "a number for a target": target(7),
    "a list for a target": target(["os.system"]),
    "nothing for a target": target(None),
    "a target for a target": target({"_target_": "os.system"}),
}  # fmt: skip


def allowed(target: str, place: str = "losses.evil", packages: str = "friendly", words: str = NOT_ALLOWED) -> Case:
    """That `_target_` while the user allows packages of the directory in which he starts the command."""

    def read(folder: Path) -> Any:
        with pytest.MonkeyPatch.context() as patch, allowing([packages]):
            patch.syspath_prepend(str(folder))
            try:
                return create({"_target_": target, "command": plant.command(folder)}, place)
            finally:
                sys.modules.pop("friendly", None)

    return Case(plant.friendly, read, words)


UNDER_A_GRANT = {
    **{
        f"{target} at {place}": allowed(target, place)
        for place, targets in {
            "losses.evil": (
                "friendly.os.system", "friendly.subprocess.Popen", "friendly.Popen", "friendly.run", "friendly.load",
                "friendly.shell", "friendly.Loss.__class__", "friendly.sing.__globals__", "friendly..Loss", "friendly",
                "friendly_evil.Model", "evil.Model", "evil_friendly.Model", "evil.friendly.Model", "os.system",
                "torch.hub.load", "friendly.sing ",
            ),
            "callbacks.evil": ("friendly.Loss",), "optimizer": ("friendly.NoLoss",),
            "quantization.rules.evil.weight": ("friendly.sing",),
        }.items()
        for target in targets
    },
    "a function that is called": allowed("friendly.sing", words=r"is a function: give losses\.evil\._partial_=true"),
    "a class that is not a loss": allowed("friendly.NoLoss", words="losses"),
    **{
        f"the package {name!r}": allowed("evil.Model", packages=name, words="allow_targets=.* is not allowed")
        for name in ("os", "os.path", "builtins", "torch", "torch.hub", "numpy", "qat_lightning", "../evil", "evil*", "ev-il")
    },
}  # fmt: skip

MATCH = {"_target_": "qat_lightning.distillation.losses.FeatureMatchingLoss", "site": "hidden"}
EVIL = {"_target_": "os.system", "command": plant.COMMAND}
RESOLVED = "${oc.create:{_target_:os.system,command:'COMMAND'}}"
RULE = "qat_lightning.models.convert.QuantizationRule"
WITHIN = "is an interpolation within a value"

PLACES = {
    "nested in an argument": node(MATCH | {"distance": EVIL}),
    "nested in a list": node({"x": [0, [{"y": EVIL}]]}),
    "nested in a dictionary without a target": node({"x": {"y": EVIL}}),
    "positional arguments": node(MATCH | {"_args_": [EVIL]}, "holds the name '_args_'"),
    "not recursive": node(MATCH | {"_recursive_": False, "x": EVIL}, "'_recursive_'"),
    "another conversion": node(MATCH | {"_convert_": "object"}, "the name '_convert_'"),
    "partial": node(EVIL | {"_partial_": True}),
    "partial by a word": node(MATCH | {"_partial_": "os.system"}, "losses.evil"),
    "a name that is no word": node(MATCH | {7: EVIL}, "holds the name 7"),
    "made when Hydra resolves again": node(MATCH | {"site": RESOLVED}, rf"losses\.evil\.site=.* {WITHIN}"),
    "a temporary folder when Hydra resolves again": node(
        {"_target_": RULE, "target_modules": "${oc.create:{_target_:tempfile.mkdtemp}}"}, WITHIN,
        lambda node: create(node, "quantization.rules.evil"),
    ),
    "the environment when Hydra resolves again": node(MATCH | {"site": "${oc.env:QAT_CANARY}"}, WITHIN),
    "an interpolated target": node({"y": "os.system", "x": EVIL | {"_target_": "${y}"}}, read=made_from_omegaconf),
    "targets in OmegaConf's lists": node({"x": {"x": [0, [EVIL]]}}, read=made_from_omegaconf),
    "an interpolated target, checked": node(
        {"experiment": "os.system", "losses": {"x": {"_target_": "${experiment}"}}},
        r"losses\.x\.\_target_='os\.system' is not allowed", checked,
    ),
    "a node made by a resolver, checked": node({"losses": {"x": RESOLVED}}, read=checked),
    "an optimizer, checked": node({"optimizer": EVIL}, read=checked),
    "a schedule, checked": node({"intervention_schedule": EVIL}, read=checked),
    "a quantizer, checked": node({"quantization": {"rules": {"layers": {"weight": EVIL}}}}, read=checked),
    "an attention's quantizer, checked": node({"quantization": {"attention": {"probs": EVIL}}}, read=checked),
    "data": node(EVIL, read=data_of),
    "a metric of the data": node({"metrics": {"x": EVIL}}, read=data_of),
    "a callback": node(EVIL, read=callbacks_of),
    "a logger": node(EVIL, read=loggers_of),
}  # fmt: skip

EVIL_LOSS = {"x": {"_target_": "evil.Model"}}

RUNS = {
    "a loss of a run folder": run_value(NOT_ALLOWED, losses={"x": {"_target_": "os.system", "command": "touch canary"}}),
    "an optimizer of a run folder": run_value(NOT_ALLOWED, optimizer={"_target_": "torch.hub.load"}),
    "a package allowed by a run folder": run_value("'allow_targets', which no run has", allow_targets=["evil"], losses=EVIL_LOSS),
    "a package allowed by a run folder's command": case(
        r"add allow_targets=\[evil\] to this command", read_run,
        lambda folder: plant.written(plant.run_folder(folder, losses=EVIL_LOSS), "overrides.yaml", "['allow_targets=[evil]']"),
    ),
    "a package allowed by a model": model_case("own code is not run", allow_targets=["evil"], auto_map=CODE, model_type="evil"),
    "trusted code in a run folder": run_value(
        "add to this command model.trust_remote_code=True model.revision=0123456789abcdef",
        model={"path": "evil/model", "trust_remote_code": True, "revision": COMMIT},
    ),
    "pickled weights in a run folder": run_value(
        "add to this command model.pickled_weights=True", model={"path": "evil/model", "pickled_weights": True}
    ),
    "the environment in a run folder": run_value("interpolation", experiment="${oc.env:QAT_CANARY}"),
    "a resolver in a run folder": run_value("interpolation", losses={"x": "${oc.create:{_target_:os.system}}"}),
    "a number beyond all in a run folder": run_value("seed=… must be", seed=10**900 - 1),
    "a reference in a run folder": run_value("interpolation", experiment="${seed}"),
    "a kernel in a run folder's architecture": case(
        "names the kernel 'evil/kernel'", lambda content: model_of("", path=None, pretrained=False, architecture=content),
        plant.filled, {"model_type": "bert", "attn_implementation": "evil/kernel"},
    ),
    "YAML calls a function": run_text("extra: !!python/object/apply:os.system ['COMMAND']\n", "has the tag"),
    "YAML makes an object": run_text("extra: !!python/object:subprocess.Popen {args: x}\n", "has the tag"),
    "YAML makes a new object": run_text("extra: !!python/object/new:os.system [x]\n", "has the tag"),
    "YAML names an object": run_text("extra: !!python/name:os.system ''\n", "has the tag"),
    "YAML imports a module": run_text("extra: !!python/module:antigravity ''\n", "has the tag"),
    "YAML makes a path": run_text("extra: !!python/object/apply:pathlib.Path [x]\n", "has the tag"),
    "YAML that grows": run_text(
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
        "more than 20000 values",
    ),
    "YAML within itself": run_text("extra: &a [*a]\n", "within each other"),
    "YAML without a bottom": run_text(f"extra: {'[' * 5_000}\n", "cannot be read as YAML"),
    "YAML without an end": run_text("#" * LARGEST_YAML, "more than the 1048576 that are read"),
    "Hydra's own settings in a run folder": run_text("hydra: {run: {dir: /}}\n", "'hydra', which no run has"),
    "defaults in a run folder": run_text("defaults: [evil]\n", "'defaults', which no run has"),
}  # fmt: skip

OUTSIDE = "no .safetensors of the same folder"


def header(change: dict[str, Any], words: str = "cannot be loaded", **more: Any) -> Case:
    """Tensors whose header says something else of the bias."""
    return case(words, model_of, plant.headed, lambda header: header[BIAS].update(change), **more)


MODELS = {
    "code of an unknown family": model_case("own code is not run", model_type="evil", auto_map=CODE),
    "code without a family": model_case("own code is not run", model_type=None, auto_map=CODE),
    "code of another repository": model_case(
        "own code is not run", model_type="evil", auto_map={"AutoConfig": "evil/other--evil.Config"}
    ),
    "trusted code of a folder": case("needs a hub id", TRUSTED, plant.model, model_type="evil", auto_map=CODE),
    "trusted code of a path that is not there": case("needs a hub id", TRUSTED, lambda folder: folder / "nowhere"),
    **{
        f"trusted code of {what}": case(
            "can change", partial(model_of, trust_remote_code=True, revision=revision), lambda folder: "evil/model"
        )
        for what, revision in {"no revision": None, "a branch": "main", "a short commit": COMMIT[:12]}.items()
    },
    "pickled weights": case(r"only safetensors .*model\.pickled_weights=true", model_of, plant.pickled),
    "pickled weights that run code": case("its pickle holds more than tensors", UNPICKLED, plant.pickled),
    "a pickle by its bare format": case("its pickle holds more than tensors", UNPICKLED, plant.bare_pickle),
    "a pickle called safetensors": case("cannot be loaded", model_of, plant.pickled, "model.safetensors"),
    "a shard that is a pickle": case(OUTSIDE, model_of, plant.sharded, "evil.bin"),
    "a shard of another folder": case(OUTSIDE, model_of, plant.sharded, "../evil.safetensors"),
    "a shard anywhere": case(OUTSIDE, model_of, plant.sharded, "/etc/evil.safetensors"),
    "other weights": model_case("transformers_weights", transformers_weights="../evil.safetensors"),
    "an adapter": case("it has an adapter", model_of, plant.adapter),
    "an attention kernel": model_case("names the kernel 'evil/kernel:run'", attn_implementation="evil/kernel:run"),
    "an attention kernel, privately": model_case("names the kernel", _attn_implementation="evil/kernel"),
    "an attention kernel, paged": model_case("names the kernel", attn_implementation="paged|evil/kernel"),
    "an attention kernel for a part": model_case("names the kernel", attn_implementation={"": "evil/kernel"}),
    "an experts kernel": model_case("names the kernel", experts_implementation="evil/kernel"),
    "a kernel for random weights": case(
        "the kernel", partial(model_of, pretrained=False), plant.model, attn_implementation="evil/kernel"
    ),
    "kernels in general": model_case("says use_kernels", use_kernels=True),
    "a configuration of kernels": model_case("says kernel_config", kernel_config={"Linear": "evil/kernel"}),
    "fused modules": model_case("says fusion_config", fusion_config={"evil": True}),
    "a quantizer's loader": model_case("quantization_config", quantization_config={"quant_method": "gptq", "bits": 4}),
    "generation by code": model_case("custom_generate", custom_generate="evil/generate"),
    "an activation by a dotted path": model_case("cannot be loaded", hidden_act="os.system"),
    "a type that is a function": model_case("cannot be loaded", dtype="load"),
    "a model of a billion layers": model_case("cannot be loaded", hidden_size=2**40),
    "tensors cut short": header({}, cut=40),
    "a shape that is not that of its bytes": header({"shape": [300]}),
    "bytes beyond the file": header({"data_offsets": [2**40, 2**40 + 12]}),
    "a header without an end": case("cannot be loaded", model_of, plant.endless_header),
}  # fmt: skip

TOKENIZERS = {
    name: case("no tokenizer in", tokenizer_of, plant.tokenizer, *gone, **config)
    for name, (gone, config) in {
        "a tokenizer of code": ((), {"auto_map": CODE, "tokenizer_class": "Evil"}),
        "a fast tokenizer of code": ((), {"auto_map": {"AutoTokenizer": [None, "evil.Tokenizer"]}, "tokenizer_class": "E"}),
        "a tokenizer by a dotted path": (("tokenizer.json", "vocab.txt"), {"tokenizer_class": "os.system"}),
    }.items()
} | {
    "a tokenizer that is no JSON": case("no tokenizer in", tokenizer_of, plant.model, files={"tokenizer.json": "{" * 9}),
}  # fmt: skip


def listed(name: str, words: str) -> Case:
    """A packed folder whose manifest lists that file."""
    return case(words, load_packed, plant.manifest, lambda content: content["files"].update({name: ""}))


def stored(**change: Any) -> Case:
    return case(
        "not a complete safetensors file", load_packed, plant.stored, lambda header: header[BIAS].update(change)
    )


def packed_config(words: str, **config: Any) -> Case:
    return case(words, load_packed, plant.configured, **config)


PACKED = {
    "a manifest's name with dots": listed("../x.json", "leads out of"),
    "a manifest's absolute name": listed("/etc/x.json", "leads out of"),
    "a manifest's name with a backslash": listed("..\\x.json", "leads out of"),
    "a manifest's name with a zero": listed("x\0.json", "leads out of"),
    "a manifest that lists a program": listed("evil.py", "is not a file of a"),
    "a manifest that lists a pickle": listed("evil.bin", "is not a file of a"),
    "a manifest of another shape": case(
        "the shape of", load_packed, plant.manifest, lambda content: content["tensors"][CODES].update(shape=[9])
    ),
    "a manifest too large": case("more than the", load_packed, plant.enlarged, "manifest.json", LARGEST_PACKED),
    "weights that are a link": case("is a link out of the folder", load_packed, plant.linked, "packed.safetensors"),
    "a manifest that is a link": case("is a link out of the folder", load_packed, plant.linked, "manifest.json"),
    "packed tensors that overlap": stored(data_offsets=[0, 12]),
    "packed shapes that are not their bytes": stored(shape=[2**62, 4]),
    "code of a packed folder": packed_config("names code of its own", auto_map=CODE),
    "a kernel of a packed folder": packed_config("is not a field of", attn_implementation="evil/kernel"),
    "a packed folder's class by a dotted path": packed_config("is not a model of the family", architectures=["os.system"]),
    "another library's quantizer in a packed folder": packed_config("is of 'gptq'", quantization_config={"quant_method": "gptq"}),
}  # fmt: skip

CHECKPOINTS = {
    f"a pickle in {place}": case(UNREADABLE, refused_or_restarted, plant.checkpoint, change)
    for place, change in {
        "a callback's state": lambda content, pickled: content["callbacks"].update(x=pickled),
        "the optimizer's state": lambda content, pickled: content["optimizer_states"].append({"state": pickled}),
        "hyperparameters": lambda content, pickled: content.update(hyper_parameters={"_instantiator": pickled}),
        "the loops": lambda content, pickled: content["loops"].update(fit=pickled),
    }.items()
} | {
    "a bare pickle": case(UNREADABLE, refused_or_restarted, plant.raw_checkpoint, plant.pickle_file),
    "a checkpoint that is no file of torch": case(
        UNREADABLE, refused_or_restarted, plant.raw_checkpoint, lambda path, _: path.write_bytes(b"PK\3\4" + bytes(99))
    ),
}  # fmt: skip

DATA = {
    "rows in a pickle": case("no file", rows_of, plant.pickled_rows, "train.pkl"),
    "rows in a program": case("no file", rows_of, plant.pickled_rows, "train.py"),
    "a pickle called parquet": case("cannot be read", rows_of, plant.pickled_rows, "train.parquet"),
    **{
        f"rows in a pipe called {name}": case("is not a plain file", rows_of, plant.pipe, name)
        for name in ("train.csv", "train.tsv", "train.jsonl", "train.parquet")
    },
    "a teacher's signals in a pipe": case(
        "is not a plain file", lambda folder: read_tensors(folder / "x.safetensors"), plant.pipe, "x.safetensors"
    ),
}  # fmt: skip

LINKS = {
    f"{name} is a {kind}, {how}": case("run folder", read, plant.special, name, make)
    for name in (
        ".lock", "config.yaml.part", "metrics.json.part", "report.md", "plots/training.png", "evaluation", "export",
        "export/packed", "export/model.onnx.part", "checkpoints", "logs/train/metrics.csv", "earlier", "mine/deep/notes.txt",
    )
    for kind, make in plant.SPECIAL.items()
    for how, read in {"continued": continued, "evaluated": read_run}.items()
}  # fmt: skip

JSON_BOMBS = {
    "JSON without a bottom": "[" * 100_000, "JSON of many levels": "[" * 99 + "]" * 99,
    "JSON without an end": " " * (LARGEST_JSON + 1),
}  # fmt: skip
JSON_FILES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "checkpoints/train.json": (lambda folder: read_outcome("train", folder), "train.json is damaged"),
    "checkpoints/train/settings.json": (lambda folder: Stage("train", folder, {}), "settings.json is damaged"),
    "metrics.json": (lambda folder: evaluate(composed(), folder, "student"), "metrics.json is damaged"),
    "analysis/hessian.json": (read_spectra, "hessian.json is damaged"),
    "analysis/landscape.json": (read_landscapes, "landscape.json is damaged"),
    "teacher.json": (lambda folder: TeacherCache(folder).check({}), "teacher.json is damaged"),
    "config.json": (model_of, "config.json"),
    "model.safetensors.index.json": (model_of, "index.json"),
    "tokenizer_config.json": (tokenizer_of, "tokenizer_config.json"),
    "preprocessor_config.json": (model_of, "preprocessor_config.json"),
}
YAML_BOMBS = {
    "YAML without a bottom": "[" * 5_000, "YAML that merges": "a: &a {x: 1}\nb: {<<: [*a, *a]}\n",
    "YAML without an end": "#" * (LARGEST_YAML + 1), "YAML that makes an object": "a: !!python/name:os.system ''\n",
    "a number in base 60": f"a: {':'.join(['1'] * 300_000)}\n", "a number beyond all": f"a: {':'.join(['1'] * 300)}.5\n",
    "a truth that is none": "a: !!bool x\n", "a number that is empty": "a: !!int ''\n",
}  # fmt: skip
YAML_FILES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "config.yaml": (read_run, "cannot be read as YAML"),
    "overrides.yaml": (_recorded_overrides, "overrides.yaml is damaged"),
}

BOMBS = {
    f"{kind} in {name}": case(words, read, plant.document, name, text)
    for texts, files in ((JSON_BOMBS, JSON_FILES), (YAML_BOMBS, YAML_FILES))
    for kind, text in texts.items()
    for name, (read, words) in files.items()
} | {
    **{
        what: case("more than the", tokenizer_of, plant.sparse, name, LARGEST_VOCABULARY + 1)
        for what, name in {
            "a vocabulary without an end": "tokenizer.json", "a chat template without an end": "chat_template.jinja",
            "an endless vocabulary of words": "vocab.txt",
        }.items()
    },
    "a vocabulary that is a pipe": case("is not a plain file", tokenizer_of, plant.pipe, "tokenizer.json"),
    "a vocabulary that is a link to itself": case("cannot be read", tokenizer_of, plant.link, "tokenizer.json", "tokenizer.json"),
    "a vocabulary that is a link to nothing": case("a missing file", tokenizer_of, plant.link, "tokenizer.json", "nowhere.json"),
    "packed weights without an end": case("more than the", load_packed, plant.enlarged, "packed.safetensors", 2**40),
    "a manifest of many levels": case(
        "lists and dictionaries within each other", load_packed,
        lambda folder: plant.written(plant.packed(folder), "manifest.json", '{"a":' * 99 + "1" + "}" * 99),
    ),
    "a manifest that is a pipe": case("is not a plain file", load_packed, plant.replaced_by_a_pipe, "manifest.json"),
}  # fmt: skip

GROUPS = (TARGETS, UNDER_A_GRANT, PLACES, RUNS, MODELS, TOKENIZERS, PACKED, CHECKPOINTS, DATA, LINKS, BOMBS)
CASES: dict[str, Case] = {name: case for group in GROUPS for name, case in group.items()}

HARMLESS = {
    "code of a known family": model_case("", auto_map=CODE),
    "targets in the metadata of tensors": case(
        "", model_of, plant.headed,
        lambda header: header.update(__metadata__={"format": "pt", "_target_": "os.system", "__reduce__": "x"}),
    ),
    "a tokenizer of a known class that names code": case("", tokenizer_of, plant.tokenizer, auto_map=CODE),
    "programs and pickles beside a packed folder": case("", load_packed, plant.beside_packed),
    "targets in a checkpoint's hyperparameters": case(
        "", resumed, plant.checkpoint, lambda content, _: content.update(hyper_parameters={"_instantiator": "os.system"})
    ),
}  # fmt: skip
"""Hostile as well, but read as data, since what they name is never looked at."""
