"""Which classes a `_target_` of the configuration can name: those of known packages, and of packages that the user allows."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hydra.utils import get_object

from qat_lightning.config.schema import ConfigError

KEY, VARIABLE = "allow_targets", "QAT_ALLOW_TARGETS"
"""The override, read from the command line alone, and the environment variable that allow a user's own packages."""

SOURCES = ("qat_lightning.", "torchmetrics.", "lightning.pytorch.", "torch.optim.")
"""How the dotted path of a `_target_` can begin without `allow_targets`; nothing else is imported."""

NEVER = sys.stdlib_module_names | {"qat_lightning", "torch", "torchmetrics", "lightning", "pytorch_lightning", "hydra",
                                   "omegaconf", "transformers", "datasets", "huggingface_hub", "numpy", "wandb"}  # fmt: skip
"""Packages that cannot be allowed: what configuration can use of them is listed here."""


@dataclass(frozen=True)
class Kind:
    """The kind of object that a place of the configuration needs."""

    name: str  # for messages
    sources: tuple[str, ...]  # modules, or classes in them, whose classes can be given there
    base: str | None = None  # the class that they derive from, compared by name: nothing is imported for the comparison
    attributes: tuple[str, ...] = ()  # what an object must have, where no base class ensures it
    functions: bool = False  # whether a function, not yet called (`_partial_: true`), can be given too

    def accepts(self, found: Any, packages: Sequence[str]) -> bool:
        """Judge a class or function by the module that defines it, since a dotted path can be an alias."""
        origin = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}."
        own = bool(self.base or self.attributes) and origin.startswith(tuple(f"{package}." for package in packages))
        if not (own or origin.startswith(self.sources)):
            return False
        if inspect.isfunction(found):
            return self.functions
        above = [f"{kind.__module__}.{kind.__qualname__}" for kind in getattr(found, "__mro__", ())[1:]]
        return inspect.isclass(found) and (self.base is None or self.base in above)


LOSS = Kind(
    "a loss",
    ("qat_lightning.distillation.losses.",),
    attributes=("weight", "sites", "needs_teacher", "__call__"),
    functions=True,
)
QUANTIZER = Kind(
    "a Quantizer", ("qat_lightning.quantization.quantizers.",), "qat_lightning.quantization.quantizers.base.Quantizer"
)
METRIC = Kind(
    "a torchmetrics Metric",
    # other metrics of torchmetrics.text load models, or download
    ("torchmetrics.classification.", "torchmetrics.regression.", "torchmetrics.text.perplexity.",
     "qat_lightning.data."),
    "torchmetrics.metric.Metric",
)  # fmt: skip
CALLBACK = Kind(
    "a Lightning Callback",
    ("lightning.pytorch.callbacks.", "qat_lightning.training.analysis_callbacks.",
     "qat_lightning.training.callbacks.StepSizeWarmup."),
    "lightning.pytorch.callbacks.callback.Callback",
)  # fmt: skip

PLACES: Mapping[str, Kind] = {
    r"losses\.[^.]+": LOSS,
    r"quantization\.(weight|embedding|activation)": QUANTIZER,
    r"quantization\.rules\.[^.]+\.(weight|input)": QUANTIZER,
    r"quantization\.attention\.(query|key|probs|value)": QUANTIZER,
    r"quantization\.rules\.[^.]+": Kind("a QuantizationRule", ("qat_lightning.models.convert.QuantizationRule.",)),
    r"quantization\.attention": Kind("an AttentionQuantization", ("qat_lightning.models.convert.AttentionQuantization.",)),
    r"intervention\.[^.]+": Kind(
        "an Intervention", ("qat_lightning.distillation.intervention.",), attributes=("sites", "apply", "check")
    ),
    "intervention_schedule": Kind(
        "an intervention schedule", ("qat_lightning.distillation.intervention_schedules.",), attributes=("names", "__call__")
    ),
    "lr_scheduler": Kind("a learning-rate schedule", ("qat_lightning.training.lr_schedules.",), attributes=("__call__",)),
    "optimizer": Kind(
        "an Optimizer", ("torch.optim.", "qat_lightning.training.optimizers."), "torch.optim.optimizer.Optimizer"
    ),
    r"callbacks\.[^.]+": CALLBACK,
    r"logger\.[^.]+": Kind(
        "a Lightning Logger", ("lightning.pytorch.loggers.",), "lightning.pytorch.loggers.logger.Logger"
    ),
    "data": Kind("a TaskData", ("qat_lightning.data.",), "qat_lightning.data.base.TaskData"),
    r"data\.metrics\.[^.]+": METRIC,
    r"data\.augmentation\.[^.]+": Kind(
        "an image augmentation", ("qat_lightning.data.augmentation.",), "torch.nn.modules.module.Module"
    ),
    r"export\.formats\.[^.]+": Kind(
        "an ExportFormat", ("qat_lightning.exporters.",), attributes=("name", "supports", "write", "load", "describe")
    ),
}  # fmt: skip
"""Pattern of a key → what can be given there. An argument of one of these objects can be any of these kinds."""


def kinds_at(key: str) -> list[Kind]:
    """Return the kinds of object that a key of the configuration can hold."""
    return [kind for place, kind in PLACES.items() if re.fullmatch(place, key)] or list(PLACES.values())


def locate(target: Any, key: str) -> Any:
    """Return the class or function that a `_target_` at a key names; raise ConfigError for one that is not allowed there."""
    kinds, packages, place = kinds_at(key), allowed_packages(), f"{key}._target_={target!r}"
    needed = kinds[0].name if len(kinds) == 1 else "an object of a known kind"
    parts = target.split(".") if isinstance(target, str) else []
    if not parts or not all(part.isidentifier() and not part.startswith("_") for part in parts):
        raise ConfigError(f"{place} is not allowed: it must be the dotted path of a class")
    if not target.startswith((*SOURCES, *(f"{package}." for package in packages))):
        sources = ", ".join(f"{source}*" for kind in kinds for source in kind.sources)
        raise ConfigError(f"{place} is not allowed: give {needed}, from {sources}{_advice(parts[0])}")
    found = _imported(target, place)
    if not any(kind.accepts(found, packages) for kind in kinds) or get_object(target) is not found:
        defined = f"{getattr(found, '__module__', '?')}.{getattr(found, '__qualname__', '?')}"
        raise ConfigError(f"{place} is not allowed: {defined} is not {needed} of an allowed package")
    return found


def import_own(target: str, place: str) -> Any:
    """Return what a dotted path names in an allowed package; raise ConfigError, which begins with `place`, if it cannot be."""
    if not target.startswith(tuple(f"{package}." for package in allowed_packages())):
        raise ConfigError(f"{place} is not in an allowed package{_advice(target.split('.')[0])}")
    return _imported(target, place)


def _imported(target: str, place: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{place} does not exist: {error}") from error
    except Exception as error:  # whatever a user's own module raises when it is imported
        raise ConfigError(f"{place} cannot be imported: {type(error).__name__}: {error}") from error


def check_made(made: Any, key: str) -> None:
    """Raise ConfigError for an object that lacks what its place needs; for classes that no base class describes."""
    kinds = kinds_at(key)
    if len(kinds) == 1 and (missing := [name for name in kinds[0].attributes if not hasattr(made, name)]):
        raise ConfigError(f"{key}: {type(made).__name__} is not {kinds[0].name}: it has no {', '.join(missing)}")


def allowed_packages() -> list[str]:
    """Return the packages that this command line, or the environment, allows; raise ConfigError for one that cannot be."""
    names = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")) or name.split(".")[0] in NEVER:
            raise ConfigError(f"{KEY}=[{name}] is not allowed: give the name of your own Python package")
    return names


def split_allowed(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split a command line into its arguments without `allow_targets=[…]`, and the packages that this names.

    >>> split_allowed(["seed=1", "allow_targets=[my_package,other]"])
    (['seed=1'], ['my_package', 'other'])
    """
    rest, packages = [], []
    for argument in arguments:
        key, given, value = argument.partition("=")
        if given and key.lstrip("+") == KEY:
            packages += [name.strip(" '\"") for name in value.strip(" '\"").strip("[]").split(",")]
        else:
            rest.append(argument)
    return rest, packages


@contextmanager
def allowing(packages: Iterable[str]) -> Iterator[None]:
    """Within the block, also in processes that it starts, allow classes of these packages as well."""
    before = os.environ.get(VARIABLE)
    names = ",".join([*filter(None, [before]), *packages])
    if names:
        os.environ[VARIABLE] = names
    try:
        allowed_packages()
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


def _advice(package: str) -> str:
    """Tell how a package can be allowed."""
    if package in NEVER:
        return ""
    return f"; if {package} is your own package, or you trust its code, add {KEY}=[{package}] to this command"
