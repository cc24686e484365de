"""What the numbers and names of a configuration may be: one table, each refusal with the key and what can be given."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from qat_lightning.config.instantiate import suggest
from qat_lightning.config.schema import ConfigError, Plain

LARGE, HUGE = 2**31 - 1, 10**18
"""The largest size that is taken for meant, and the largest number that every kernel still can convert."""


@dataclass(frozen=True)
class Number:
    """A number of a range, or None.

    Args:
        above: the least itself is too small.
    """

    least: float = 0
    most: float = HUGE
    whole: bool = True
    above: bool = False

    def wrong(self, value: Any) -> str | None:
        """What it must be, of a value that it is not."""
        typed = not isinstance(value, bool) and isinstance(value, int if self.whole else int | float)
        if value is None or (typed and self._holds(value)):
            return None
        beyond = not (typed and value <= self.most) or self.most < LARGE
        least = f"above {self.least:g}" if self.above else f"{self.least:g} or more"
        return f"must be {least}{f', at most {self.most:g}' * beyond}, {'an integer' if self.whole else 'a number'}"

    def _holds(self, value: float) -> bool:
        return self.least <= value <= self.most and not (self.above and value == self.least)


@dataclass(frozen=True)
class Choice:
    """One of some names, or None."""

    names: tuple[str, ...]

    def wrong(self, value: Any) -> str | None:
        return None if value is None or value in self.names else f"is unknown: {suggest(str(value), self.names)}"


@dataclass(frozen=True)
class Kind:
    """A value of some types and no other, or None.

    Args:
        name: in words.
    """

    types: tuple[type, ...]
    name: str

    def wrong(self, value: Any) -> str | None:
        return None if value is None or type(value) in self.types else f"must be {self.name}"


@dataclass(frozen=True)
class Node:
    """What `instantiate` makes something of.

    Args:
        nothing: what leaves it out.
    """

    nothing: tuple[Any, ...] = (None,)

    def wrong(self, value: Any) -> str | None:
        if value in self.nothing or (isinstance(value, Mapping) and "_target_" in value):
            return None
        return f"must {'be null, or ' * bool(self.nothing)}hold a _target_ and its arguments"


COUNT, SIZE = Number(least=0, most=LARGE), Number(least=1, most=LARGE)
POSITIVE, REAL = Number(whole=False, above=True), Number(whole=False)
RATE = Number(most=10, whole=False)
"""A learning rate or a weight decay; no optimizer of torch has a default above 1."""
SEED = Number(least=0, most=2**32 - 1)

TEXT, FLAG, LIST = Kind((str,), "a name"), Kind((bool,), "true, false or null"), Kind((list,), "a list")
MAPPING, NODE = Kind((dict,), "a mapping, as {layers.0.*: 8}"), Node()
METRICS = Kind((dict,), "a mapping, as {accuracy: {_target_: torchmetrics.classification.BinaryAccuracy}}")

_DDP = ("find_unused_parameters_true", "find_unused_parameters_false")
_WITHIN = ("ddp_spawn", "ddp_fork", "ddp_notebook")
PRECISIONS = Choice(
    tuple("32-true 64-true 16-true bf16-true 16-mixed bf16-mixed 16 bf16 32 64".split())  # noqa: SIM905
)
"""Lightning's."""

_QUANTIZER = r"quantization\.(weight|embedding|activation|rules\.\w+\.(weight|input)|attention\.\w+)"

TABLE: Mapping[str, Number | Choice | Kind | Node] = {
    "seed": SEED,
    "threads": Number(least=1, most=4096),
    "activation_checkpointing": FLAG,
    "compile": FLAG,
    r"model\.architecture\.(.*_size|num_.*|n_.*|max_position_embeddings|d_model)": SIZE,
    r"model\.architecture\..*(dropout|dropout_prob)": Number(most=1, whole=False),
    r"model\.architecture\.model_type": TEXT,
    r"model\.student_layers\.\d+": COUNT,
    r"data\.metrics": METRICS,
    r"data|optimizer|lr_scheduler|data\.metrics\.\w+": Node(nothing=()),
    "intervention_schedule": Node(nothing=(None, {})),
    r"data\.metrics\.\w+\.num_classes": SIZE,
    r"data\.seed": SEED,
    r"data\.(batch_size|evaluation_batch_size|train_limit|validation_limit|num_labels|rows|size|channels|stride|n_best)": SIZE,
    r"data\.(max_length|max_question_length|max_answer_length)": SIZE,
    r"data\.(length|vocabulary_size)": Number(least=2, most=LARGE),
    r"data\.num_workers": Number(most=1024),
    r"stages\.\w+\.(max_steps|max_epochs)": COUNT,
    r"stages\.\w+\.(validate_every|checkpoint_every)": SIZE,
    r"stages\.\w+\.lr": RATE,
    r"stages\.intervene\.target_modules\.\d+": TEXT,
    r"quantization\.(weight|embedding|activation|attention|rules\.\w+(\.(weight|input))?)": NODE,
    r"quantization\.attention\.(query|key|probs|value)": NODE,
    r"quantization\.rules\.\w+\.target_modules": TEXT,
    r"quantization\.rules\.\w+\.optional": FLAG,
    r"quantization\.bits": MAPPING,
    r"(losses|intervention|callbacks|logger)\.\w+": NODE,
    rf"{_QUANTIZER}\.clip": POSITIVE,
    rf"{_QUANTIZER}\.(bits|group_size)": SIZE,
    rf"{_QUANTIZER}\.clip_gradient": FLAG,
    r"quantization\.step_size\.\w+\.(lr|weight_decay)": RATE,
    r"quantization\.calibration_rows": SIZE,
    r"losses\.\w+\.(weight|temperature)": REAL,
    r"losses\.\w+\.site": TEXT,
    r"(losses\.\w+\.layers|intervention\.\w+\.at)": LIST,
    r"intervention\.\w+\.at\.\d+": COUNT,
    r"schedule\.shares\.\w+": COUNT,
    r"lr_scheduler\.warmup": Number(most=1, whole=False),
    r"optimizer\.(fused|foreach|amsgrad|maximize|capturable)": FLAG,
    r"optimizer\.(lr|weight_decay|eps)": RATE,
    r"optimizer\.betas\.\d": Number(most=1, whole=False),
    r"trainer\.(num_nodes|accumulate_grad_batches)": SIZE,
    r"trainer\.log_every_n_steps": COUNT,
    r"trainer\.gradient_clip_val": REAL,
    r"trainer\.gradient_clip_algorithm": Choice(("norm", "value")),
    r"trainer\.accelerator": Choice(("auto", "cpu", "cuda", "gpu", "mps", "tpu")),
    r"trainer\.precision": PRECISIONS,
    r"trainer\.strategy": Choice(
        ("auto", "ddp", *(f"ddp_{how}" for how in _DDP), "deepspeed", "fsdp", "single_device")
    ),
    r"trainer\.profiler": Choice(("simple", "advanced", "pytorch")),
    r"callbacks\.\w+\.patience": COUNT,
    r"export\.rows": SIZE,
}
"""Pattern of a whole key → what may stand there. What a class of our own says of its arguments stands there alone."""

NEEDED = re.compile(
    r"(seed|trainer\.(accelerator|precision)|losses\.\w+\.weight|data\.(batch_size|num_workers|metrics)|optimizer\.lr"
    r"|model\.student_layers\.\d+|stages\.intervene\.target_modules\.\d+)"
)
"""Keys that cannot be null."""


def check_bounds(config: Plain) -> None:
    """Every number and name of `TABLE`; raises ConfigError."""
    _check_strategy(config["trainer"]["strategy"])
    for key, value in _flat(config):
        if isinstance(value, float) and not math.isfinite(value) and key.startswith(("callbacks.", "logger.")):
            raise ConfigError(f"{key}={value} must be a finite number")
        for pattern, allowed in TABLE.items():
            if re.fullmatch(pattern, key) and (wrong := allowed.wrong(value)):
                raise ConfigError(f"{key}={shorten(repr(value), 80, placeholder=' …')} {wrong}")
        if value is None and NEEDED.fullmatch(key):
            raise ConfigError(f"{key}=null: it must be given")
    _check_devices(config["trainer"]["devices"])
    _check_share(config["trainer"]["limit_val_batches"])


def _check_strategy(strategy: Any) -> None:
    if isinstance(strategy, str) and strategy.startswith(_WITHIN):
        raise ConfigError(
            f"trainer.strategy={strategy} starts its processes anew in each stage, and only the weights come back from them:"
            " a checkpoint's state, scores and times are lost. Set trainer.strategy=ddp"
        )


def _check_devices(devices: Any) -> None:
    """As Lightning takes them: a number of processes, -1 or "auto" for all, or a list of device numbers."""
    number = int(devices) if isinstance(devices, str) and re.fullmatch(r"-?\d+", devices) else devices
    listed = isinstance(number, list) and number and all(type(one) is int and one >= 0 for one in number)
    if not (listed or number in ("auto", -1) or (type(number) is int and 1 <= number <= LARGE)):
        raise ConfigError(
            f"trainer.devices={devices!r} must be a whole number, 1 or more; auto or -1 for all; or a list of device numbers"
        )


def _check_share(batches: Any) -> None:
    if batches is None or (type(batches) is int and 1 <= batches <= LARGE):
        return
    if not (type(batches) is float and 0 < batches <= 1):
        raise ConfigError(
            f"trainer.limit_val_batches={batches!r} must be a whole number of batches, 1 or more, or a share above 0, at"
            " most 1.0"
        )


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value under its dotted key, and every node as well: a node may stand where a number should."""
    children: Any = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        key = f"{prefix}.{name}" if prefix else str(name)
        yield key, child
        yield from _flat(child, key)
