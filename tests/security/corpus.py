"""Hostile files and configurations as data: how each is made, what reads it, and the words in which it is refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from tests.security.modules import OneWeight
from tests.security.plant import composed

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


def made(node: Any) -> Any:
    return create(node, "losses.evil")


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


def model_with(**settings: Any) -> Callable[[Any], Any]:
    return lambda folder: model_of(folder, **settings)


def tokenizer_of(folder: Path) -> Any:
    return read_tokenizer(str(folder), max_length=16)


def run_of(folder: Path) -> Any:
    return read_run(folder)


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
    return stage, lambda: stage.fit(trainer, OneWeight(), data, keep_best=False)


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


def target(path: Any, /, **arguments: Any) -> Case:
    """Return a configuration with that `_target_` in place of a loss, with arguments that would do harm."""
    return Case(lambda folder: {"_target_": path, "command": plant.command(folder)} | arguments, made, NOT_ALLOWED)


def node(make: Callable[[str], Any], words: str = NOT_ALLOWED, read: Callable[[Any], Any] = made) -> Case:
    return Case(lambda folder: make(plant.command(folder)), read, words)


def model_case(words: str, **config: Any) -> Case:
    return Case(lambda folder: plant.model(folder, **config), model_of, words)


def tensors(change: Callable[[dict[str, Any]], Any], words: str, cut: int = 0) -> Case:
    return Case(lambda folder: plant.headed(folder, change, cut), model_of, words)


def manifest(change: Callable[[dict[str, Any]], Any], words: str) -> Case:
    return Case(lambda folder: plant.manifest(folder, change), load_packed, words)


def packed_config(words: str, **config: Any) -> Case:
    return Case(lambda folder: plant.configured(folder, **config), load_packed, words)


def run_text(text: Callable[[str], str], words: str) -> Case:
    return Case(lambda folder: plant.run_folder(folder, text(plant.command(folder))), run_of, words)


def run_value(words: str, **changes: Any) -> Case:
    return Case(lambda folder: plant.run_folder(folder, **changes), run_of, words)


def checkpoint(change: Callable[[dict[str, Any], Path], Any], words: str = UNREADABLE) -> Case:
    return Case(
        lambda folder: plant.checkpoint(folder, lambda content: change(content, folder)), refused_or_restarted, words
    )


def _evil(command: str) -> dict[str, Any]:
    return {"_target_": "os.system", "command": command}


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
    "Lightning makes classes of names": Case(
        lambda folder: {
            "_target_": "lightning.pytorch.cli.instantiate_class", "args": ["touch", str(plant.canary(folder))],
            "init": {"class_path": "subprocess.Popen"},
        },
        made, NOT_ALLOWED,
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
        for target, place in {
            "friendly.os.system": "losses.evil", "friendly.subprocess.Popen": "losses.evil", "friendly.Popen": "losses.evil",
            "friendly.run": "losses.evil", "friendly.load": "losses.evil", "friendly.shell": "losses.evil",
            "friendly.Loss.__class__": "losses.evil", "friendly.sing.__globals__": "losses.evil", "friendly..Loss": "losses.evil",
            "friendly": "losses.evil", "friendly_evil.Model": "losses.evil", "evil.Model": "losses.evil",
            "evil_friendly.Model": "losses.evil", "evil.friendly.Model": "losses.evil", "os.system": "losses.evil",
            "torch.hub.load": "losses.evil", "friendly.Loss": "callbacks.evil", "friendly.NoLoss": "optimizer",
            "friendly.sing": "quantization.rules.evil.weight", "friendly.sing ": "losses.evil",
        }.items()
    },
    "a function that is called": allowed("friendly.sing", words=r"is a function: give losses\.evil\._partial_=true"),
    "a class that is not a loss": allowed("friendly.NoLoss", words="losses"),
    **{
        f"the package {name!r}": allowed("evil.Model", packages=name, words="allow_targets=.* is not allowed")
        for name in ("os", "os.path", "builtins", "torch", "torch.hub", "numpy", "qat_lightning", "../evil", "evil*", "ev-il")
    },
}  # fmt: skip

MATCH = {"_target_": "qat_lightning.distillation.losses.FeatureMatchingLoss", "site": "hidden"}

PLACES = {
    "nested in an argument": node(lambda command: MATCH | {"distance": _evil(command)}),
    "nested in a list": node(lambda command: {"x": [0, [{"y": _evil(command)}]]}),
    "nested in a dictionary without a target": node(lambda command: {"x": {"y": _evil(command)}}),
    "positional arguments": node(lambda command: MATCH | {"_args_": [_evil(command)]}, "holds the name '_args_'"),
    "not recursive": node(lambda command: MATCH | {"_recursive_": False, "x": _evil(command)}, "'_recursive_'"),
    "another conversion": node(lambda command: MATCH | {"_convert_": "object"}, "the name '_convert_'"),
    "partial": node(lambda command: _evil(command) | {"_partial_": True}),
    "partial by a word": node(lambda command: MATCH | {"_partial_": "os.system"}, "losses.evil"),
    "a name that is no word": node(lambda command: MATCH | {7: _evil(command)}, "holds the name 7"),
    "made when Hydra resolves again": node(
        lambda command: MATCH | {"site": f"${{oc.create:{{_target_:os.system,command:'{command}'}}}}"},
        r"losses\.evil\.site=.* is an interpolation within a value",
    ),
    "a temporary folder when Hydra resolves again": node(
        lambda command: {
            "_target_": "qat_lightning.models.convert.QuantizationRule", 
            "target_modules": "${oc.create:{_target_:tempfile.mkdtemp}}",
        },
        "is an interpolation within a value", lambda node: create(node, "quantization.rules.evil"),
    ),
    "the environment when Hydra resolves again": node(
        lambda command: MATCH | {"site": "${oc.env:QAT_CANARY}"}, "is an interpolation within a value"
    ),
    "an interpolated target": node(
        lambda command: OmegaConf.create({"x": "os.system", "loss": {"_target_": "${x}", "command": command}}).loss
    ),
    "targets in OmegaConf's lists": node(lambda command: OmegaConf.create({"x": [0, [_evil(command)]]})),
    "an interpolated target, checked": node(
        lambda command: {"experiment": "os.system", "losses": {"x": {"_target_": "${experiment}"}}},
        r"losses\.x\.\_target_='os\.system' is not allowed", checked,
    ),
    "a node made by a resolver, checked": node(
        lambda command: {"losses": {"x": f"${{oc.create:{{_target_:os.system,command:'{command}'}}}}"}},
        NOT_ALLOWED, checked,
    ),
    "an optimizer, checked": node(lambda command: {"optimizer": _evil(command)}, NOT_ALLOWED, checked),
    "a schedule, checked": node(lambda command: {"intervention_schedule": _evil(command)}, NOT_ALLOWED, checked),
    "a quantizer, checked": node(
        lambda command: {"quantization": {"rules": {"layers": {"weight": _evil(command)}}}}, NOT_ALLOWED, checked
    ),
    "an attention's quantizer, checked": node(
        lambda command: {"quantization": {"attention": {"probs": _evil(command)}}}, NOT_ALLOWED, checked
    ),
    "data": node(_evil, NOT_ALLOWED, data_of),
    "a metric of the data": node(lambda command: {"metrics": {"x": _evil(command)}}, NOT_ALLOWED, data_of),
    "a callback": node(_evil, NOT_ALLOWED, callbacks_of),
    "a logger": node(_evil, NOT_ALLOWED, loggers_of),
}  # fmt: skip

RUNS = {
    "a loss of a run folder": run_value(NOT_ALLOWED, losses={"x": {"_target_": "os.system", "command": "touch canary"}}),
    "an optimizer of a run folder": run_value(NOT_ALLOWED, optimizer={"_target_": "torch.hub.load"}),
    "a package allowed by a run folder": run_value(
        "'allow_targets', which no run has", allow_targets=["evil"], losses={"x": {"_target_": "evil.Model"}}
    ),
    "a package allowed by a run folder's command": Case(
        lambda folder: plant.written(
            plant.run_folder(folder, losses={"x": {"_target_": "evil.Model"}}), "overrides.yaml", "['allow_targets=[evil]']"
        ),
        run_of, r"add allow_targets=\[evil\] to this command",
    ),
    "a package allowed by a model": model_case("its own code is not run", allow_targets=["evil"],
                                               auto_map=CODE, model_type="evil"),
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
    "a kernel in a run folder's architecture": Case(
        lambda folder: {"model_type": "bert", "attn_implementation": "evil/kernel"},
        lambda content: model_of("", path=None, pretrained=False, architecture=content), "names the kernel 'evil/kernel'",
    ),
    "YAML calls a function": run_text(lambda c: f"extra: !!python/object/apply:os.system ['{c}']\n", "has the tag"),
    "YAML makes an object": run_text(lambda c: "extra: !!python/object:subprocess.Popen {args: x}\n", "has the tag"),
    "YAML makes a new object": run_text(lambda c: "extra: !!python/object/new:os.system [x]\n", "has the tag"),
    "YAML names an object": run_text(lambda c: "extra: !!python/name:os.system ''\n", "has the tag"),
    "YAML imports a module": run_text(lambda c: "extra: !!python/module:antigravity ''\n", "has the tag"),
    "YAML makes a path": run_text(lambda c: "extra: !!python/object/apply:pathlib.Path [x]\n", "has the tag"),
    "YAML that grows": run_text(
        lambda c: "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
        "more than 20000 values",
    ),
    "YAML within itself": run_text(lambda c: "extra: &a [*a]\n", "within each other"),
    "YAML without a bottom": run_text(lambda c: f"extra: {'[' * 5_000}\n", "cannot be read as YAML"),
    "YAML without an end": run_text(lambda c: "#" * LARGEST_YAML, "more than the 1048576 that are read"),
    "Hydra's own settings in a run folder": run_text(lambda c: "hydra: {run: {dir: /}}\n", "'hydra', which no run has"),
    "defaults in a run folder": run_text(lambda c: "defaults: [evil]\n", "'defaults', which no run has"),
}  # fmt: skip

MODELS = {
    "code of an unknown family": model_case("own code is not run", model_type="evil", auto_map=CODE),
    "code without a family": model_case("own code is not run", model_type=None, auto_map=CODE),
    "code of another repository": model_case(
        "own code is not run", model_type="evil", auto_map={"AutoConfig": "evil/other--evil.Config"}
    ),
    "trusted code of a folder": Case(
        lambda folder: plant.model(folder, model_type="evil", auto_map=CODE),
        model_with(trust_remote_code=True, revision=COMMIT), "needs a hub id",
    ),
    "trusted code of a path that is not there": Case(
        lambda folder: folder / "nowhere", model_with(trust_remote_code=True, revision=COMMIT), "needs a hub id"
    ),
    "trusted code of no revision": Case(
        lambda folder: "evil/model", model_with(trust_remote_code=True), "model.revision=None can change"
    ),
    "trusted code of a branch": Case(
        lambda folder: "evil/model", model_with(trust_remote_code=True, revision="main"), "revision=main can change"
    ),
    "trusted code of a short commit": Case(
        lambda folder: "evil/model", model_with(trust_remote_code=True, revision=COMMIT[:12]), "can change"
    ),
    "pickled weights": Case(plant.pickled, model_of, r"only safetensors .*model\.pickled_weights=true"),
    "pickled weights that run code": Case(
        plant.pickled, model_with(pickled_weights=True), "its pickle holds more than tensors"
    ),
    "a pickle by its bare format": Case(
        lambda folder: _bare(folder), model_with(pickled_weights=True), "its pickle holds more than tensors"
    ),
    "a pickle called safetensors": Case(
        lambda folder: plant.pickled(folder, "model.safetensors"), model_of, "cannot be loaded"
    ),
    "a shard that is a pickle": Case(
        lambda folder: plant.sharded(folder, "evil.bin"), model_of, "no .safetensors of the same folder"
    ),
    "a shard of another folder": Case(
        lambda folder: plant.sharded(folder, "../evil.safetensors"), model_of, "no .safetensors of the same folder"
    ),
    "a shard anywhere": Case(
        lambda folder: plant.sharded(folder, "/etc/evil.safetensors"), model_of, "no .safetensors of the same folder"
    ),
    "other weights": model_case("transformers_weights", transformers_weights="../evil.safetensors"),
    "an adapter": Case(plant.adapter, model_of, "it has an adapter"),
    "an attention kernel": model_case("names the kernel 'evil/kernel:run'", attn_implementation="evil/kernel:run"),
    "an attention kernel, privately": model_case("names the kernel", _attn_implementation="evil/kernel"),
    "an attention kernel, paged": model_case("names the kernel", attn_implementation="paged|evil/kernel"),
    "an attention kernel for a part": model_case("names the kernel", attn_implementation={"": "evil/kernel"}),
    "an experts kernel": model_case("names the kernel", experts_implementation="evil/kernel"),
    "a kernel for random weights": Case(
        lambda folder: plant.model(folder, attn_implementation="evil/kernel"), model_with(pretrained=False), "the kernel"
    ),
    "kernels in general": model_case("says use_kernels", use_kernels=True),
    "a configuration of kernels": model_case("says kernel_config", kernel_config={"Linear": "evil/kernel"}),
    "fused modules": model_case("says fusion_config", fusion_config={"evil": True}),
    "a quantizer's loader": model_case("quantization_config", quantization_config={"quant_method": "gptq", "bits": 4}),
    "generation by code": model_case("custom_generate", custom_generate="evil/generate"),
    "an activation by a dotted path": model_case("cannot be loaded", hidden_act="os.system"),
    "a type that is a function": model_case("cannot be loaded", dtype="load"),
    "a model of a billion layers": model_case("cannot be loaded", hidden_size=2**40),
    "tensors cut short": tensors(lambda header: None, "cannot be loaded", cut=40),
    "a shape that is not that of its bytes": tensors(
        lambda header: header[BIAS].update(shape=[300]), "cannot be loaded"
    ),
    "bytes beyond the file": tensors(
        lambda header: header[BIAS].update(data_offsets=[2**40, 2**40 + 12]), "cannot be loaded"
    ),
    "a header without an end": Case(lambda folder: _header(folder), model_of, "cannot be loaded"),
}  # fmt: skip

TOKENIZERS = {
    "a tokenizer of code": Case(
        lambda folder: plant.tokenizer(folder, auto_map=CODE, tokenizer_class="Evil"), tokenizer_of, "no tokenizer in"
    ),
    "a fast tokenizer of code": Case(
        lambda folder: plant.tokenizer(folder, auto_map={"AutoTokenizer": [None, "evil.Tokenizer"]}, tokenizer_class="E"),
        tokenizer_of, "no tokenizer in",
    ),
    "a tokenizer by a dotted path": Case(
        lambda folder: plant.tokenizer(folder, "tokenizer.json", "vocab.txt", tokenizer_class="os.system"),
        tokenizer_of, "no tokenizer in",
    ),
    "a tokenizer that is no JSON": Case(
        lambda folder: plant.model(folder, files={"tokenizer.json": "{" * 9}), tokenizer_of, "no tokenizer in"
    ),
}  # fmt: skip

PACKED = {
    "a manifest's name with dots": manifest(lambda content: content["files"].update({"../x.json": ""}), "leads out of"),
    "a manifest's absolute name": manifest(lambda content: content["files"].update({"/etc/x.json": ""}), "leads out of"),
    "a manifest's name with a backslash": manifest(lambda content: content["files"].update({"..\\x.json": ""}), "leads out of"),
    "a manifest's name with a zero": manifest(lambda content: content["files"].update({"x\0.json": ""}), "leads out of"),
    "a manifest that lists a program": manifest(lambda content: content["files"].update({"evil.py": ""}), "is not a file of a"),
    "a manifest that lists a pickle": manifest(lambda content: content["files"].update({"evil.bin": ""}), "is not a file of a"),
    "a manifest of another shape": manifest(lambda content: content["tensors"][CODES].update(shape=[9]), "the shape of"),
    "a manifest too large": Case(lambda folder: _large(folder), load_packed, "more than the 104857600 that are read"),
    "weights that are a link": Case(
        lambda folder: plant.linked(folder, "packed.safetensors"), load_packed, "is a link out of the folder"
    ),
    "a manifest that is a link": Case(
        lambda folder: plant.linked(folder, "manifest.json"), load_packed, "is a link out of the folder"
    ),
    "packed tensors that overlap": Case(
        lambda folder: plant.stored(folder, lambda header: header[BIAS].update(data_offsets=[0, 12])), load_packed,
        "not a complete safetensors file",
    ),
    "packed shapes that are not their bytes": Case(
        lambda folder: plant.stored(folder, lambda header: header[BIAS].update(shape=[2**62, 4])), load_packed,
        "not a complete safetensors file",
    ),
    "code of a packed folder": packed_config("names code of its own", auto_map=CODE),
    "a kernel of a packed folder": packed_config("is not a field of", attn_implementation="evil/kernel"),
    "a packed folder's class by a dotted path": packed_config("is not a model of the family", architectures=["os.system"]),
    "another library's quantizer in a packed folder": packed_config(
        "is of 'gptq'", quantization_config={"quant_method": "gptq"}
    ),
}  # fmt: skip

CHECKPOINTS = {
    "a pickle in a callback's state": checkpoint(lambda content, f: content["callbacks"].update(x=plant.Runs(plant.command(f)))),
    "a pickle in the optimizer's state": checkpoint(
        lambda content, f: content["optimizer_states"].append({"state": plant.Runs(plant.command(f))})
    ),
    "a pickle in hyperparameters": checkpoint(
        lambda content, f: content.update(hyper_parameters={"_instantiator": plant.Runs(plant.command(f))})
    ),
    "a pickle in the loops": checkpoint(lambda content, f: content["loops"].update(fit=plant.Runs(plant.command(f)))),
    "a bare pickle": Case(
        lambda folder: plant.raw_checkpoint(folder, lambda path: plant.pickle_file(path, folder)), refused_or_restarted,
        UNREADABLE,
    ),
    "a checkpoint that is no file of torch": Case(
        lambda folder: plant.raw_checkpoint(folder, lambda path: path.write_bytes(b"PK\3\4" + bytes(99))), refused_or_restarted,
        UNREADABLE,
    ),
}  # fmt: skip

DATA = {
    "rows in a pickle": Case(lambda folder: _data(folder, "train.pkl"), lambda f: read_split(str(f), None, "train"), "no file"),
    "rows in a program": Case(lambda folder: _data(folder, "train.py"), lambda f: read_split(str(f), None, "train"), "no file"),
    "a pickle called parquet": Case(
        lambda folder: _data(folder, "train.parquet"), lambda f: read_split(str(f), None, "train"), "cannot be read"
    ),
} | {
    f"rows in a pipe called {name}": Case(
        lambda folder, name=name: plant.pipe(folder / name), lambda f: read_split(str(f), None, "train"), "is not a plain file"
    )
    for name in ("train.csv", "train.tsv", "train.jsonl", "train.parquet")
} | {
    "a teacher's signals in a pipe": Case(
        lambda folder: plant.pipe(folder / "x.safetensors"), lambda f: read_tensors(f / "x.safetensors"), "is not a plain file"
    ),
}  # fmt: skip

LINKS = {
    f"{name} is a {kind}, {how}": Case(lambda folder, name=name, make=make: plant.special(folder, name, make), read, "run folder")
    for name in (
        ".lock", "config.yaml.part", "metrics.json.part", "report.md", "plots/training.png", "evaluation", "export",
        "export/packed", "export/model.onnx.part", "checkpoints", "logs/train/metrics.csv", "earlier", "mine/deep/notes.txt",
    )
    for kind, make in plant.SPECIAL.items()
    for how, read in {"continued": continued, "evaluated": run_of}.items()
}  # fmt: skip

BOMBS = {
    f"{kind} in {name}": Case(lambda folder, name=name, text=text: plant.document(folder, name, text), read, words)
    for kind, text in {
        "JSON without a bottom": "[" * 100_000, "JSON of many levels": "[" * 99 + "]" * 99,
        "JSON without an end": " " * (LARGEST_JSON + 1),
    }.items()
    for name, read, words in (
        ("checkpoints/train.json", lambda folder: read_outcome("train", folder), "train.json is damaged"),
        ("checkpoints/train/settings.json", lambda folder: Stage("train", folder, {}), "settings.json is damaged"),
        ("metrics.json", lambda folder: evaluate(composed(), folder, "student"), "metrics.json is damaged"),
        ("analysis/hessian.json", read_spectra, "hessian.json is damaged"),
        ("analysis/landscape.json", read_landscapes, "landscape.json is damaged"),
        ("teacher.json", lambda folder: TeacherCache(folder).check({}), "teacher.json is damaged"),
        ("config.json", lambda folder: model_of(folder), "config.json"),
        ("model.safetensors.index.json", lambda folder: model_of(folder), "index.json"),
        ("tokenizer_config.json", tokenizer_of, "tokenizer_config.json"),
        ("preprocessor_config.json", lambda folder: model_of(folder), "preprocessor_config.json"),
    )
} | {
    f"{kind} in {name}": Case(lambda folder, name=name, text=text: plant.document(folder, name, text), read, words)
    for kind, text in {
        "YAML without a bottom": "[" * 5_000, "YAML that merges": "a: &a {x: 1}\nb: {<<: [*a, *a]}\n",
        "YAML without an end": "#" * (LARGEST_YAML + 1), "YAML that makes an object": "a: !!python/name:os.system ''\n",
        "a number in base 60": f"a: {':'.join(['1'] * 300_000)}\n", "a number beyond all": f"a: {':'.join(['1'] * 300)}.5\n",
        "a truth that is none": "a: !!bool x\n", "a number that is empty": "a: !!int ''\n",
    }.items()
    for name, read, words in (
        ("config.yaml", run_of, "cannot be read as YAML"),
        ("overrides.yaml", _recorded_overrides, "overrides.yaml is damaged"),
    )
} | {
    "a vocabulary without an end": Case(
        lambda folder: plant.sparse(folder / "tokenizer.json", LARGEST_VOCABULARY + 1), tokenizer_of, "more than the"
    ),
    "a vocabulary that is a pipe": Case(
        lambda folder: plant.pipe(folder / "tokenizer.json"), tokenizer_of, "is not a plain file"
    ),
    "a chat template without an end": Case(
        lambda folder: plant.sparse(folder / "chat_template.jinja", LARGEST_VOCABULARY + 1), tokenizer_of, "more than the"
    ),
    "an endless vocabulary of words": Case(
        lambda folder: plant.sparse(folder / "vocab.txt", LARGEST_VOCABULARY + 1), tokenizer_of, "more than the"
    ),
    "a vocabulary that is a link to itself": Case(
        lambda folder: plant.link(folder / "tokenizer.json", "tokenizer.json"), tokenizer_of, "cannot be read"
    ),
    "a vocabulary that is a link to nothing": Case(
        lambda folder: plant.link(folder / "tokenizer.json", "nowhere.json"), tokenizer_of, "a missing file"
    ),
    "packed weights without an end": Case(
        lambda folder: plant.sparse(plant.packed(folder) / "packed.safetensors", 2**40), load_packed, "more than the"
    ),
    "a manifest of many levels": Case(
        lambda folder: plant.written(plant.packed(folder), "manifest.json", '{"a":' * 99 + "1" + "}" * 99), load_packed,
        "lists and dictionaries within each other",
    ),
    "a manifest that is a pipe": Case(
        lambda folder: plant.replaced_by_a_pipe(plant.packed(folder), "manifest.json"), load_packed, "is not a plain file"
    ),
}  # fmt: skip

CASES: dict[str, Case] = (
    TARGETS | UNDER_A_GRANT | PLACES | RUNS | MODELS | TOKENIZERS | PACKED | CHECKPOINTS | DATA | LINKS | BOMBS
)

HARMLESS = {
    "code of a known family": model_case("", auto_map=CODE),
    "targets in the metadata of tensors": tensors(
        lambda header: header.update(__metadata__={"format": "pt", "_target_": "os.system", "__reduce__": "x"}), ""
    ),
    "a tokenizer of a known class that names code": Case(
        lambda folder: plant.tokenizer(folder, auto_map=CODE), tokenizer_of
    ),
    "programs and pickles beside a packed folder": Case(lambda folder: _beside(folder), load_packed),
    "targets in a checkpoint's hyperparameters": Case(
        lambda folder: plant.checkpoint(folder, lambda content: content.update(hyper_parameters={"_instantiator": "os.system"})),
        resumed,
    ),
}  # fmt: skip
"""Hostile as well, but read as data, since what they name is never looked at."""


def _bare(folder: Path) -> Path:
    made = plant.model(folder, weights=False)
    plant.pickle_file(made / "pytorch_model.bin", folder)
    return made


def _header(folder: Path) -> Path:
    made = plant.model(folder)
    (made / "model.safetensors").write_bytes((2**63).to_bytes(8, "little") + b"{")
    return made


def _large(folder: Path) -> Path:
    made = plant.packed(folder)
    with (made / "manifest.json").open("wb") as file:
        file.truncate(LARGEST_PACKED + 1)  # sparse: nothing is written
    return made


def _beside(folder: Path) -> Path:
    made = plant.packed(folder)
    (made / "modeling.py").write_text(plant.code(folder))
    plant.pickle_file(made / "pytorch_model.bin", folder)
    return made


def _data(folder: Path, name: str) -> Path:
    plant.pickle_file(folder / name, folder)
    return folder
