"""Typed schema of a run, checks across its fields, and the one place that turns configuration into objects."""

from qat_lightning.config.checks import check
from qat_lightning.config.folder import in_one_process, located, read_run
from qat_lightning.config.guarded import check_flags, guarded_hydra
from qat_lightning.config.overrides import MULTIRUN, check_words, is_override, quote_paths
from qat_lightning.config.schema import CONF, ConfigError, Plain, resolve
from qat_lightning.config.targets import ALLOWED, check_targets, create, create_all, suggest

__all__ = [
    "ALLOWED",
    "CONF",
    "MULTIRUN",
    "ConfigError",
    "Plain",
    "check",
    "check_flags",
    "check_targets",
    "check_words",
    "create",
    "create_all",
    "guarded_hydra",
    "in_one_process",
    "is_override",
    "located",
    "quote_paths",
    "read_run",
    "resolve",
    "suggest",
]
