"""Compare the weights that were loaded with the model: everything but the task's head must come from the files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from qat_lightning.config.schema import ConfigError, RunConfig
from qat_lightning.models.module_paths import layer_paths, part_paths

WRAPPERS = {"module.": "DataParallel or DistributedDataParallel", "_orig_mod.": "torch.compile"}
"""Prefix of the names of weights → what was wrapped around the model when they were saved."""

BUFFERS = re.compile(r"\.(masked_bias|inv_freq|position_ids)$")
"""Constants that earlier versions of transformers saved with the weights of a layer."""

REPORT = "LOAD REPORT"
"""The warning of transformers that repeats its report, which `check_weights` reads."""


def check_weights(config: RunConfig, model: PreTrainedModel, report: Mapping[str, Any]) -> str:
    """Describe in one line what was loaded, what is newly initialized and what is not used, by transformers' report.

    Raises ConfigError for weights that are missing, have another shape or are left over, other than those of a task's head,
    and for a new head that no teacher stage trains.
    """
    path, heads = config.model.path, _heads(model)
    shapes = {name: f"{tuple(saved)} for {tuple(own)}" for name, saved, own in report["mismatched_keys"]}
    unused = _counted("unused", report["unexpected_keys"])
    problems = [
        _counted("missing", (name for name in report["missing_keys"] if not name.startswith(heads))),
        _counted("of another shape", (f"{name} {shapes[name]}" for name in shapes if not name.startswith(heads))),
        _counted("in layers, but not of the model", _of_layers(model, report["unexpected_keys"])),
    ]
    if any(problems):
        raise ConfigError(
            f"model.path={path!r} cannot be loaded, its weights do not fit its config.json ({len(model.state_dict())} tensors):"
            f" {'; '.join(filter(None, [*problems, unused]))}: {_advice(report['unexpected_keys'])}"
        )
    new = [name for name in (*report["missing_keys"], *shapes) if name.startswith(heads)]
    if new and config.stages.teacher.empty:
        raise ConfigError(
            f"model.path={path!r} has no {part_paths(model).get('head', 'head')} for this data, and no teacher stage trains"
            " one: give a model that is fine-tuned on it, or stages.teacher.max_epochs=3"
        )
    return "; ".join(filter(None, [f"weights of {path!r}", _counted("newly initialized in the head", new), unused]))


@contextmanager
def warnings_of_transformers() -> Iterator[list[str]]:
    """Collect what transformers warns of while it loads, each in one line, instead of printing or dropping it."""
    logger, caught = logging.getLogger("transformers"), _Caught(logging.WARNING)
    level, handlers, propagate = logger.level, logger.handlers, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.handlers, logger.propagate = [caught], False
    try:
        yield caught.lines
    finally:
        logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate


class _Caught(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = "".join(filter(str.isprintable, " ".join(record.getMessage().split())))
        if REPORT not in line and line not in self.lines:
            self.lines.append(line)


def _heads(model: PreTrainedModel) -> tuple[str, ...]:
    """Prefixes of the names of the task's head: the last layer, and the dense layer (pooler) before it."""
    return tuple(f"{path}." for part, path in part_paths(model).items() if part in ("pooler", "head"))


def _of_layers(model: PreTrainedModel, names: Iterable[str]) -> list[str]:
    """Those that would lie in one of the model's layers, or in layers after its last one; constants left out."""
    base = f"{model.base_model_prefix}."
    stack = layer_paths(model)[0].rpartition(".")[0].removeprefix(base)
    return [name for name in names if name.removeprefix(base).startswith(f"{stack}.") and not BUFFERS.search(name)]


def _counted(what: str, names: Iterable[str]) -> str:
    """How many there are, and one of them; nothing where there are none."""
    counted = sorted(names)
    return f"{what}: {len(counted)} (such as {counted[0]!r})" if counted else ""


def _advice(unused: Iterable[str]) -> str:
    for prefix, wrapper in WRAPPERS.items():
        if any(name.startswith(prefix) for name in unused):
            return f"save the model itself, without {wrapper}, whose {prefix!r} is in the names"
    return "give a folder whose config.json and weights were saved together by save_pretrained"
