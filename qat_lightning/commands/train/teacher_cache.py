"""The frozen teacher of a run: its own precision, and what decides the signals that `teacher_cache` keeps."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qat_lightning.config.builders.models import in_teacher_precision
from qat_lightning.config.instantiate import create_all
from qat_lightning.config.schema import ConfigError, RunConfig
from qat_lightning.data.base import TaskData
from qat_lightning.data.padding_stats import widths
from qat_lightning.io.markdown import human_bytes
from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.convert import open_attention_for
from qat_lightning.models.sites import AXES, CORE_SITES, MAPS
from qat_lightning.models.size import tensors_hash
from qat_lightning.training.teacher_cache.cache import TeacherCache

WEIGHTS = "the teacher's weights"
NO_ARCHITECTURE = ("architecture._", "architecture.transformers_version", "architecture.dtype",
                   "architecture.id2label", "architecture.label2id", "architecture.problem_type")  # fmt: skip
"""Where a model came from, who wrote its file, its type of numbers, told by what converts it, and the names of classes."""


def facts(config: RunConfig, content: str, model: nn.Module, device: torch.device) -> dict[str, Any]:
    """All that decides the signals but the batch and the way attention is computed, each under a name for people.

    Args:
        content: the data's fingerprint.
        model: what teaches, its weights as they will be.
    """
    architecture = dict(_leaves(model.config.to_dict(), "architecture"))  # type: ignore[operator, union-attr]
    own = {name: value for name, value in architecture.items() if not name.startswith(NO_ARCHITECTURE)}
    known = {
        WEIGHTS: tensors_hash(model),
        "model": type(model).__name__,
        **own,
        "teacher_precision": config.teacher_precision and config.teacher_precision.name,
        "trainer.precision": config.trainer.precision,
        "torch.get_float32_matmul_precision": torch.get_float32_matmul_precision(),
        "device": _name(device),
        "the data's rows, as its tokenizer reads them": content,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    return json.loads(json.dumps(known, default=str))  # as a file gives them back


def find_cache(
    config: RunConfig, data: TaskData, content: str, model: nn.Module, device: torch.device
) -> TeacherCache | None:
    """The cache that `teacher_cache` asks for, not yet used; its folder can be this run's, as far as is known now.

    The weights are known only when the teacher stage is done.

    Raises:
        ConfigError: batches that never come again; a folder of another teacher.
    """
    if config.teacher_cache is None:
        return None
    if getattr(data, "augmentation", None):
        raise ConfigError(
            "teacher_cache keeps what the teacher says to a batch, and augmented images are others every time: give"
            " data/augmentation=none, or leave teacher_cache out"
        )
    cache = TeacherCache(Path(config.teacher_cache).expanduser())
    trained = not config.stages.teacher.empty
    unknown = {WEIGHTS} if trained else set()
    known = facts(config, content, in_teacher_precision(config, model), device)
    try:
        cache.check(known, sorted(unknown))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    place = _there(cache.folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(
            f"teacher_cache={str(cache.folder)!r} cannot be written to: {place} is no folder, or not yours"
        )
    return cache


def check_room(
    config: RunConfig, data: TaskData, model: nn.Module, cache: TeacherCache, batches: Mapping[str, int]
) -> str:
    """What the folder will take, in words, measured on a few rows.

    Args:
        model: the teacher, not trained yet.
        batches: stage → different batches of training, of all processes.

    Raises:
        ConfigError: the disk has less room.
    """
    needed, there = _foreseen(config, data, model, batches), cache.bytes
    free = shutil.disk_usage(_there(cache.folder)).free
    if needed - there > free:
        raise ConfigError(
            f"teacher_cache={str(cache.folder)!r} will take about {human_bytes(needed)}, and its disk has {human_bytes(free)}"
            " left: give a folder on another disk, losses that read less (losses=logits), fewer different batches"
            " (data.reshuffle=false), or leave teacher_cache out"
        )
    return f"about {human_bytes(needed)} in {cache.folder} ({human_bytes(there)} there, {human_bytes(free)} free)"


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


@torch.no_grad()
def _foreseen(config: RunConfig, data: TaskData, model: nn.Module, batches: Mapping[str, int]) -> int:
    """Bytes of the signals of all batches; what two stages read of the same batches, computed the same way, counts once."""
    batch = data.calibration_batches(min(data.batch_size, 32))[0]
    needed: dict[tuple[Any, ...], float] = {}
    for stage, count in batches.items():
        sites, rows = sites_of(config, stage), {"training": count * data.batch_size}
        if stage == "intervene":  # which is validated with the teacher's help
            rows["validation"] = len(data.validation_rows)
        copied = open_attention_for(in_teacher_precision(config, copy.deepcopy(model)).eval(), sites)
        padded = widths(data, count)
        for site, layers in SignalCapture(copied, sorted(sites))(batch).items():
            each = sum(signal.nbytes for signal in layers) / len(batch["labels"])
            if padded is not None:
                sizes, tokens = padded
                longer = (tokens / batch["input_ids"].shape[1]) ** _token_axes(site)
                each *= float((sizes * longer).sum() / sizes.sum())
            for split, number in rows.items():
                how = (split, bool(CORE_SITES & sites), bool(MAPS & sites), site)
                needed[how] = max(needed.get(how, 0), each * number)
    return round(sum(needed.values()))


def _token_axes(site: str) -> int:
    """How a signal grows with the length: with its square where it is a map."""
    return sum(axis in "NM" for axis in AXES.get(site, "BHND"))


def sites_of(config: RunConfig, stage: str) -> set[str]:
    """What a stage asks the teacher for."""
    losses = create_all(config.losses, "losses")
    sites = {site for loss in losses.values() if loss.weight != 0 for site in loss.sites}
    if stage == "intervene":
        interventions = create_all(config.intervention, "intervention")
        sites |= {site for intervention in interventions.values() for site in intervention.sites}
    return sites


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted key → value."""
    for name, value in node.items():
        key = f"{prefix}.{name}"
        yield from _leaves(value, key) if isinstance(value, Mapping) and value else [(key, value)]
