"""Which way a value that a callback watches becomes better."""

from __future__ import annotations

import inspect

from hydra.utils import get_object

from qat_lightning.config.schema import ConfigError, Plain
from qat_lightning.data.base import TaskData

AUTO = "auto"
"""The mode of a callback that takes the direction of what it watches; the same as no mode."""

SMALLER_IS_BETTER = ("loss", "perplexity", "error", "divergence", "cover_length_ratio")
"""Words in the name of a value that is better when it is smaller."""


def with_mode(node: Plain, key: str, data: TaskData) -> Plain:
    """The node of a callback, its `mode` set to "min" or "max" where the callback has one and none was given.

    Lightning's own default is "min", whatever is watched.

    Raises:
        ConfigError: the value that is watched has no better end, or none that is known.
    """
    node = {name: value for name, value in node.items() if name != "_partial_"}
    if node.get("mode", AUTO) != AUTO or not {"mode", "monitor"} <= _arguments(node):
        return node
    monitor = node.get("monitor")
    if monitor is None:
        return {name: value for name, value in node.items() if name != "mode"}
    larger = larger_is_better(monitor, data)
    if larger is None:
        raise ConfigError(
            f"{key}.mode must be given: whether {monitor} is better when it is larger (max) or smaller (min) is not known"
        )
    return node | {"mode": "max" if larger else "min"}


def larger_is_better(monitor: str, data: TaskData) -> bool | None:
    """Tell whether a larger value is better, by the metric's attribute or else by the name; None if both are silent."""
    kind, _, name = monitor.partition("/")
    metric = data.metrics.get(name) if kind in ("val", "val_assisted") else None
    if metric is not None and metric.higher_is_better is not None:
        return bool(metric.higher_is_better)
    if any(word in monitor.lower() for word in SMALLER_IS_BETTER):
        return False
    return None if metric is None else True  # a correlation does not say


def _arguments(node: Plain) -> set[str]:
    return set(inspect.signature(get_object(node["_target_"])).parameters)
