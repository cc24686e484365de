"""How to make what a stranger could have made: folders and files that would leave a canary, were anything of them run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import load_file
from torch import nn
from transformers import BertTokenizer

from qat_lightning.config.schema import as_plain
from qat_lightning.exporters.packed.manifest import canonical
from qat_lightning.exporters.packed.untrusted_files import sha256
from qat_lightning.exporters.packed.writer import write_packed
from qat_lightning.training.checkpoints.callbacks import BestCheckpoint
from tests.exporters.students import student
from tests.tiny_models import tiny_model
from tests.training.runs import composed

KEPT = TemporaryDirectory()
"""What is made once, and copied: a model, a packed folder, a checkpoint."""

SECRET = "a-word-of-the-environment"


class Runs:
    """Unpickled, it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def canary(folder: Path) -> Path:
    return folder / "canary"


def command(folder: Path) -> str:
    return f"touch {canary(folder)}"


class OneWeight(LightningModule):
    """Trains on nothing; what matters is the checkpoint that it is resumed from."""

    steps = 1

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(1, 1)

    def training_step(self, batch, index):
        return self.student(torch.ones(1, 1)).sum()

    def validation_step(self, batch, index):
        self.log("val/accuracy", 0.5)

    def configure_optimizers(self):
        return torch.optim.SGD(self.student.parameters(), lr=0.1)


COMMAND = "COMMAND"


def filled(folder: Path, node: Any) -> Any:
    """The node with the command in place of `COMMAND`."""
    if isinstance(node, dict):
        return {name: filled(folder, value) for name, value in node.items()}
    if isinstance(node, list):
        return [filled(folder, value) for value in node]
    return node.replace(COMMAND, command(folder)) if isinstance(node, str) else node


def code(folder: Path) -> str:
    """A module that no import survives unseen; it defines all that a repository of models is asked for."""
    names = ("Config", "Model", "Tokenizer", "generate")
    return f"open({str(canary(folder))!r}, 'w').close()\n" + "".join(f"class {name}: pass\n" for name in names)


FRIENDLY = """
import os, subprocess
from functools import partial
from subprocess import Popen, run
from torch.hub import load
class Loss:
    weight, sites, needs_teacher = 1.0, (), False
class NoLoss: ...
def sing(command): os.system(command)
shell = partial(os.system)
"""
"""A package that the user allows; its names reach other packages."""


def friendly(folder: Path) -> Path:
    """A directory with an allowed package, and others whose names begin or end like it."""
    (folder / "friendly.py").write_text(FRIENDLY)
    for name in ("friendly_evil", "evil", "evil_friendly"):
        (folder / f"{name}.py").write_text(code(folder))
    return folder


@cache
def plain() -> Path:
    folder = Path(KEPT.name) / "model"
    tiny_model("bert").save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=24).save_pretrained(folder)
    return folder


@cache
def _packed() -> Path:
    folder = Path(KEPT.name) / "packed"
    write_packed(student("bert", "lsq_w2a8 quantization.weight.bits=3"), folder)
    return folder


def model(folder: Path, *, weights: bool = True, files: dict[str, str] | None = None, **config: Any) -> Path:
    """A model folder with other values in its config.json, code of its own beside it, and other files."""
    made = Path(shutil.copytree(plain(), folder / "model"))
    content = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(content | config))
    (made / "evil.py").write_text(code(folder))
    if not weights:
        (made / "model.safetensors").unlink()
    for name, text in (files or {}).items():
        (made / name).write_text(text)
    return made


def pickled(folder: Path, name: str = "pytorch_model.bin", **config: Any) -> Path:
    """A model folder whose only weights are a pickle, good tensors and a command in it."""
    made = model(folder, weights=False, **config)
    torch.save(load_file(plain() / "model.safetensors") | {"more": Runs(command(folder))}, made / name)
    return made


def bare_pickle(folder: Path) -> Path:
    made = model(folder, weights=False)
    pickle_file(made / "pytorch_model.bin", folder)
    return made


def sharded(folder: Path, shard: str) -> Path:
    """An index of safetensors, all of whose weights lie in `shard`: a pickle."""
    made = pickled(folder, "evil.bin")
    shutil.copy(made / "evil.bin", folder / "evil.bin")
    names = load_file(plain() / "model.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard)}
    (made / "model.safetensors.index.json").write_text(json.dumps(index))
    return made


def headed(folder: Path, change: Callable[[dict[str, Any]], Any], cut: int = 0) -> Path:
    """A model folder whose safetensors have another header, `cut` bytes missing at the end."""
    return _change_header(model(folder) / "model.safetensors", change, cut)


def stored(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A packed folder with another header of its tensors."""
    return _change_header(packed(folder) / "packed.safetensors", change)


def _change_header(path: Path, change: Callable[[dict[str, Any]], Any], cut: int = 0) -> Path:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    content = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + data[8 + length : len(data) - cut])
    return path.parent


def endless_header(folder: Path) -> Path:
    made = model(folder)
    (made / "model.safetensors").write_bytes((2**63).to_bytes(8, "little") + b"{")
    return made


def adapter(folder: Path) -> Path:
    made = model(folder)
    content = {"peft_type": "LORA", "base_model_name_or_path": "evil/model", "auto_mapping": {"parent_library": "evil"}}
    (made / "adapter_config.json").write_text(json.dumps(content))
    torch.save({"x": Runs(command(folder))}, made / "adapter_model.bin")
    return made


def tokenizer(folder: Path, *gone: str, **config: Any) -> Path:
    made = model(folder)
    (made / "config.json").unlink()
    content = json.loads((made / "tokenizer_config.json").read_text())
    (made / "tokenizer_config.json").write_text(json.dumps(content | config))
    for name in gone:
        (made / name).unlink()
    return made


def packed(folder: Path) -> Path:
    return Path(shutil.copytree(_packed(), folder / "packed"))


def manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A packed folder with another manifest, sealed with the checksum that it would have."""
    made = packed(folder)
    content = json.loads((made / "manifest.json").read_text())
    change(content)
    content.pop("sha256", None)
    (made / "manifest.json").write_bytes(canonical(content | {"sha256": sha256(canonical(content))}))
    return made


def configured(folder: Path, **config: Any) -> Path:
    """A packed folder with other values in its config.json, and a manifest that agrees."""
    data = json.dumps(json.loads((_packed() / "config.json").read_text()) | config).encode()
    made = manifest(folder, lambda content: content["files"].update({"config.json": sha256(data)}))
    (made / "config.json").write_bytes(data)
    return made


def linked(folder: Path, name: str) -> Path:
    """A packed folder one of whose files is a link to a file elsewhere."""
    made = packed(folder)
    shutil.move(made / name, folder / name)
    (made / name).symlink_to(folder / name)
    return made


def run_folder(folder: Path, text: str = "", **changes: Any) -> Path:
    """A run folder whose config.yaml has other values, and `text` after them."""
    made = folder / "run"
    made.mkdir()
    (made / "config.yaml").write_text(yaml.safe_dump(as_plain(composed()) | changes, sort_keys=False) + text)
    return made


@cache
def _checkpoint() -> Path:
    place = Path(KEPT.name) / "last.ckpt"
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=place.parent,
    )  # fmt: skip
    trainer.fit(OneWeight(), [0])
    trainer.save_checkpoint(place)
    return place


def checkpoint(folder: Path, change: Callable[[dict[str, Any], Runs], Any]) -> Path:
    """A stage's `last.ckpt`, as Lightning writes it but for one thing: `change` is given the content and a pickle."""
    content = torch.load(_checkpoint(), weights_only=True)
    content["callbacks"]["BestCheckpoint"] = BestCheckpoint(folder, "x", True).state_dict()
    change(content, Runs(command(folder)))
    return raw_checkpoint(folder, lambda path, _: torch.save(content, path))


def raw_checkpoint(folder: Path, write: Callable[[Path, Path], Any]) -> Path:
    """A begun stage whose `last.ckpt` bears the seal of a whole one: a checksum, which anybody can write."""
    scratch = folder / "checkpoints" / "teacher"
    scratch.mkdir(parents=True)
    (scratch / "settings.json").write_text("{}")
    write(scratch / "last.ckpt", folder)
    data = (scratch / "last.ckpt").read_bytes()
    (scratch / "last.ckpt").write_bytes(data + b"\nsha256:" + sha256(data).encode())
    return folder


def pickle_file(path: Path, folder: Path) -> None:
    path.write_bytes(pickle.dumps(Runs(command(folder))))


def special(folder: Path, name: str, make: Callable[[Path, Path], Any]) -> Path:
    """A run folder with a link or a pipe of that name; what a link points to must stay as it is."""
    made = run_folder(folder)
    (made / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / "outside").mkdir()
    (folder / "outside" / "manifest.json").write_text("{}")
    make(made / name, folder)
    return made


SPECIAL: dict[str, Callable[[Path, Path], Any]] = {
    "link to a file": lambda place, folder: place.symlink_to(canary(folder)),
    "link to a folder": lambda place, folder: place.symlink_to(folder / "outside", target_is_directory=True),
    "pipe": lambda place, folder: os.mkfifo(place),
}


def document(folder: Path, name: str, text: str) -> Path:
    """A folder of a model, or of a run, with that file in it."""
    made = model(folder) if name.endswith(("config.json", "index.json")) else folder / "run"
    return written(made, name, text)


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder


def sparse(folder: Path, name: str, size: int) -> Path:
    """A file of zeros of that size, which takes no room."""
    with (folder / name).open("wb") as file:
        file.truncate(size)
    return folder


def enlarged(folder: Path, name: str, size: int) -> Path:
    """A packed folder one of whose files has more bytes than that."""
    return sparse(packed(folder), name, size + 1)


def link(folder: Path, name: str, to: str) -> Path:
    (folder / name).symlink_to(to)
    return folder


def pipe(folder: Path, name: str) -> Path:
    os.mkfifo(folder / name)
    return folder


def replaced_by_a_pipe(folder: Path, name: str) -> Path:
    """A packed folder one of whose files is a pipe."""
    made = packed(folder)
    (made / name).unlink()
    return pipe(made, name)


def pickled_rows(folder: Path, name: str) -> Path:
    pickle_file(folder / name, folder)
    return folder


def beside_packed(folder: Path) -> Path:
    """A packed folder with code and a pickle beside its own files."""
    made = packed(folder)
    (made / "modeling.py").write_text(code(folder))
    pickle_file(made / "pytorch_model.bin", folder)
    return made
