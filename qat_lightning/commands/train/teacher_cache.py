"""The facts that a run's teacher signals depend on, and the checks of its `teacher_cache` folder."""

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
from qat_lightning.config.builders.training import Objective
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
"""Entries of a model's configuration that no signal depends on."""


def teacher_facts(config: RunConfig, content: str, model: nn.Module, device: torch.device) -> dict[str, Any]:
    """Return everything that the signals depend on, except the batch and how the attention is computed.

    `content` is the data's fingerprint, `model` the teacher with its final weights and precision.
    """
    architecture = dict(_leaves(model.config.to_dict(), "architecture"))  # type: ignore[operator, union-attr]
    own = {name: value for name, value in architecture.items() if not name.startswith(NO_ARCHITECTURE)}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if device.type == "cpu":
        name += f" {torch.backends.cpu.get_cpu_capability()}"
    known = {
        WEIGHTS: tensors_hash(model),
        "model": type(model).__name__,
        **own,
        "teacher_precision": config.teacher_precision and config.teacher_precision.name,
        "trainer.precision": config.trainer.precision,
        "torch.get_float32_matmul_precision": torch.get_float32_matmul_precision(),
        "device": name,
        "the data's rows, as its tokenizer reads them": content,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    return json.loads(json.dumps(known, default=str))  # as they are read from the file


def find_cache(
    config: RunConfig, data: TaskData, content: str, model: nn.Module, device: torch.device
) -> TeacherCache | None:
    """Return the cache of `teacher_cache`, after checking the facts that are known before the teacher is trained."""
    if config.teacher_cache is None:
        return None
    if getattr(data, "augmentation", None):
        raise ConfigError("teacher_cache is of no use for augmented batches: set data/augmentation=none, or no cache")
    cache = TeacherCache(Path(config.teacher_cache).expanduser())
    known = teacher_facts(config, content, in_teacher_precision(config, model), device)
    try:
        cache.check(known, unknown=[] if config.stages.teacher.empty else [WEIGHTS])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    place = _existing(cache.folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"teacher_cache={str(cache.folder)!r} cannot be written to: {place} is not your folder")
    return cache


def check_disk_space(
    config: RunConfig,
    data: TaskData,
    model: nn.Module,
    cache: TeacherCache,
    batches: Mapping[str, int],
    objective: Objective,
) -> str:
    """Return one line with the bytes that the cache will take, estimated from a few rows; ConfigError if the disk has less.

    `batches` is stage → number of different training batches of all processes.
    """
    needed, present = _estimated_bytes(config, data, model, batches, objective), cache.bytes
    free = shutil.disk_usage(_existing(cache.folder)).free
    if needed - present > free:
        raise ConfigError(
            f"teacher_cache={str(cache.folder)!r} will take about {human_bytes(needed)}, and its disk has {human_bytes(free)}"
            " left: set a folder on another disk, losses with fewer signals (losses=logits), fewer different batches"
            " (data.reshuffle=false), or leave teacher_cache out"
        )
    return f"about {human_bytes(needed)} in {cache.folder} ({human_bytes(present)} present, {human_bytes(free)} free)"


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


@torch.no_grad()
def _estimated_bytes(
    config: RunConfig, data: TaskData, model: nn.Module, batches: Mapping[str, int], objective: Objective
) -> int:
    """Return the bytes of all batches' signals; signals that two stages share count once."""
    batch = data.calibration_batches(min(data.batch_size, 32))[0]
    needed: dict[tuple[Any, ...], float] = {}
    for stage, count in batches.items():
        sites, rows = objective.of(stage).sites, {"training": count * data.batch_size}
        if stage == "intervene":  # its validation uses the teacher as well
            rows["validation"] = len(data.validation_rows)
        copied = open_attention_for(in_teacher_precision(config, copy.deepcopy(model)).eval(), sites)
        padded = widths(data, count)
        for site, layers in SignalCapture(copied, sorted(sites))(batch).items():
            each = sum(signal.nbytes for signal in layers) / len(next(iter(batch.values())))
            if padded is not None:
                sizes, tokens = padded
                axes = sum(axis in "NM" for axis in AXES.get(site, "BHND"))  # two of attention maps are tokens
                longer = (tokens / batch["input_ids"].shape[1]) ** axes
                each *= float((sizes * longer).sum() / sizes.sum())
            for split, number in rows.items():
                how = (split, bool(CORE_SITES & sites), bool(MAPS & sites), site)
                needed[how] = max(needed.get(how, 0), each * number)
    return round(sum(needed.values()))


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of each leaf."""
    for name, value in node.items():
        key = f"{prefix}.{name}"
        yield from _leaves(value, key) if isinstance(value, Mapping) and value else [(key, value)]
