"""The typed schema of a configuration: Hydra refuses unknown keys and wrong types while it composes."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

PACKAGE = Path(__file__).resolve().parents[1]
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
"""The configuration of this package: in the package if installed from a wheel, beside it in a checkout."""

Plain = dict[str, Any]
"""A resolved configuration: dictionaries, lists, strings, numbers."""


class ConfigError(ValueError):
    """A mistake in the configuration; the message names the key and what to do."""


BUDGET_WIDTHS = (2, 3, 4, 5, 6, 8)
"""The widths that `quantization.budget` chooses from, unless others are given."""

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "bits": 1}

LARGEST = 2**31 - 1
"""The largest number of steps, epochs or rows."""


def bounded(default: Any, least: float, most: float = LARGEST) -> Any:
    """Define a field whose number, unless it is None, must be `least` to `most`; see `check_bounds`."""
    return field(default=default, metadata={"bounds": (least, most)})


Teacher = Enum("Teacher", {"full_precision": "full_precision", "none": "none"})
"""The model that the student is distilled from: the one that it was quantized from, or none (plain QAT)."""

TeacherPrecision = Enum("TeacherPrecision", {"bf16": "bf16"})
"""Precision of the frozen teacher's parameters, if it differs from the trainer's."""

Profiler = Enum("Profiler", {"simple": "simple", "advanced": "advanced", "pytorch": "pytorch"})
"""Lightning's profilers by name."""

Keep = Enum("Keep", {"best": "best", "last": "last"})
"""The weights that a stage passes to the next: the best on the validation split, or the last."""

UnquantizedDtype = Enum("UnquantizedDtype", {"float32": "float32", "float16": "float16"})
"""Type of the weights that are not quantized, in the packed folder."""

TernaryEncoding = Enum("TernaryEncoding", {"2bit": "2bit", "base3": "base3"})
"""How the packed folder holds weights of three values: 2 bits each, or five in a byte."""


@dataclass
class ModelConfig:
    """path: hub id or folder · revision: of a hub id, a branch, a tag or a commit · pretrained: load the weights of `path`, or
    start with random ones; None is true where `path` is given and false where it is not · architecture: fields of the
    transformers configuration, for pretrained=false · student_layers: the student is made of these layers of the teacher
    alone · trust_remote_code: run the code that comes with a hub id, pinned by a full commit as the revision ·
    pickled_weights: read a pytorch_model.bin if model.safetensors is missing (as tensors, never as objects)."""

    path: str | None = None
    revision: str | None = None
    pretrained: bool | None = True
    architecture: dict[str, Any] = field(default_factory=dict)
    student_layers: list[int] | None = None
    trust_remote_code: bool = False
    pickled_weights: bool = False


@dataclass
class StageConfig:
    """Budgets in optimizer steps and epochs; lr: this stage's own (else optimizer.lr) · checkpoint_every, checkpoint_minutes:
    optimizer steps and minutes after which a checkpoint is written, whichever come first."""

    max_steps: int | None = bounded(None, 0)
    max_epochs: int | None = bounded(None, 0)
    lr: float | None = bounded(None, 0, 10)
    validate_every: int | None = bounded(None, 1)
    checkpoint_every: int = bounded(500, 1)
    checkpoint_minutes: float | None = bounded(None, 0.001)
    keep: Keep = Keep.best

    @property
    def empty(self) -> bool:
        """Tell whether the budget has no steps."""
        return 0 in (self.max_steps, self.max_epochs)


@dataclass
class InterveneStageConfig(StageConfig):
    """target_modules: globs of the parts that are quantized in this stage; None for all."""

    target_modules: list[str] | None = None


@dataclass
class TrainStageConfig(StageConfig):
    """includes_intervene: the budget counts the intervene stage's steps (arXiv:2302.11812: steps(1) + steps(2) = N)."""

    includes_intervene: bool = False


@dataclass
class StagesConfig:
    teacher: StageConfig = field(default_factory=StageConfig)
    intervene: InterveneStageConfig = field(default_factory=InterveneStageConfig)
    train: TrainStageConfig = field(default_factory=TrainStageConfig)


@dataclass
class StepSizeConfig:
    """Settings of the optimizer for learned step sizes; lr None: as for all other parameters."""

    lr: float | None = bounded(None, 0, 10)
    weight_decay: float = bounded(0.0, 0, 10)


@dataclass
class StepSizesConfig:
    """Step sizes of the quantizers of weights, and of those of activations."""

    weights: StepSizeConfig = field(default_factory=StepSizeConfig)
    activations: StepSizeConfig = field(default_factory=StepSizeConfig)


@dataclass
class QuantizationConfig:
    """rules: name → QuantizationRule, the first that matches wins · attention: an AttentionQuantization, or null · bits: glob
    over parts → width of the weights there · budget: size of the packed model (6MiB), or mean width of the weights
    (2.5bits), under which the run chooses the bits itself · budget_widths: the widths that it chooses from."""

    weight: Any = None
    embedding: Any = None
    activation: Any = None
    rules: dict[str, Any] = field(default_factory=dict)
    attention: Any = None
    bits: Any = None
    budget: str | None = None
    budget_widths: list[int] = field(default_factory=lambda: list(BUDGET_WIDTHS))
    step_size: StepSizesConfig = field(default_factory=StepSizesConfig)
    calibration_rows: int = bounded(256, 1)


@dataclass
class ExportConfig:
    """packed, onnx: what is written · unquantized_dtype, ternary_encoding: of the packed folder · rows: validation rows
    that both are checked against the student on."""

    packed: bool = True
    onnx: bool = True
    unquantized_dtype: UnquantizedDtype = UnquantizedDtype.float32
    ternary_encoding: TernaryEncoding = TernaryEncoding["2bit"]
    rows: int = bounded(1000, 1)
    formats: dict[str, Any] = field(default_factory=dict)


@dataclass
class GateConfig:
    """What a finished student must keep, or the run ends with exit code 1; None for no limit. metric_drop: largest loss of the
    metric against the teacher · agreement: least share of validation rows that it answers as the teacher does · bytes: largest
    size of its packed weights (8MiB)."""

    metric_drop: float | None = bounded(None, 0)
    agreement: float | None = bounded(None, 0, 1)
    bytes: str | None = None


@dataclass
class TaskLossConfig:
    """The ground-truth loss, in the teacher stage and in `losses.task`. class_weights: a list with one for each class ·
    "balanced" for rows ÷ (classes · rows of the class) on the training rows · None for equal ones."""

    class_weights: Any = None
    label_smoothing: float = bounded(0.0, 0, 0.99)


@dataclass
class TrainerConfig:
    """Arguments of Lightning's Trainer, without those that a run decides itself (`DECIDED_BY_RUN`)."""

    accelerator: str = "auto"
    devices: Any = 1
    num_nodes: int = bounded(1, 1)
    strategy: str = "auto"
    precision: str = "32-true"
    accumulate_grad_batches: int = bounded(1, 1)
    gradient_clip_val: float | None = bounded(None, 0)
    gradient_clip_algorithm: str | None = None
    log_every_n_steps: int = bounded(10, 0)
    limit_val_batches: Any = None
    deterministic: Any = None
    benchmark: bool | None = None
    detect_anomaly: bool = False
    enable_progress_bar: bool = True
    enable_model_summary: bool = False
    enable_autolog_hparams: bool = True
    sync_batchnorm: bool = False
    model_registry: str | None = None
    profiler: Profiler | None = None


_STEPS, _VALIDATION = "stages.STAGE.max_steps", "stages.STAGE.validate_every"
DECIDED_BY_RUN: typing.Mapping[str, str] = {
    "max_steps": _STEPS, "min_steps": _STEPS, "max_time": _STEPS, "max_epochs": "stages.STAGE.max_epochs",
    "min_epochs": "stages.STAGE.max_epochs", "limit_train_batches": _STEPS, "overfit_batches": "debug=overfit",
    "fast_dev_run": "debug=fast", "barebones": "python -m qat_lightning.bench", "callbacks": "+callbacks.NAME._target_",
    "logger": "+logger.NAME._target_", "default_root_dir": "hydra.run.dir", "val_check_interval": _VALIDATION,
    "check_val_every_n_epoch": _VALIDATION, "num_sanity_val_steps": "nothing: two rows go through a run before it begins",
    "enable_checkpointing": "stages.STAGE.checkpoint_every", "limit_test_batches": "data.validation_limit",
    "limit_predict_batches": "data.validation_limit", "reload_dataloaders_every_n_epochs": "data.reshuffle",
    "use_distributed_sampler": "nothing: the data's samplers know the processes",
    "inference_mode": "nothing: a run needs torch.no_grad", "plugins": "trainer.strategy or trainer.precision, by name",
}  # fmt: skip
"""Argument of Lightning's Trainer that `trainer` does not take → what to give instead."""


@dataclass
class RunConfig:
    """threads: CPU threads of torch; None leaves torch's own choice · activation_checkpointing: of the model in training: its
    layers run again in the backward pass · compile: models and losses by torch.compile · teacher_precision: of the frozen
    teacher; None for the trainer's · teacher_cache: a folder that keeps the teacher's signals of each batch; None for none ·
    working_directory: where the command was started, which the run records; relative paths of the run are relative to it."""

    experiment: str = "run"
    seed: int = bounded(1, 0, 2**32 - 1)
    threads: int | None = bounded(None, 1, 4096)
    activation_checkpointing: bool = False
    compile: bool = False
    teacher: Teacher = Teacher.full_precision
    teacher_precision: TeacherPrecision | None = None
    teacher_cache: str | None = None
    working_directory: str | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    data: dict[str, Any] = field(default_factory=dict)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    losses: dict[str, Any] = field(default_factory=dict)
    intervention: dict[str, Any] = field(default_factory=dict)
    intervention_schedule: Any = None
    optimizer: dict[str, Any] = field(default_factory=dict)
    lr_scheduler: dict[str, Any] = field(default_factory=dict)
    stages: StagesConfig = field(default_factory=StagesConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    task_loss: TaskLossConfig = field(default_factory=TaskLossConfig)
    callbacks: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)

    def stage(self, name: str) -> StageConfig:
        """Return the settings of a stage by its name."""
        stage: StageConfig = getattr(self.stages, name)
        return stage


@dataclass
class BenchConfig:
    """The configuration of `python -m qat_lightning.bench`; bench: the settings of group `bench`."""

    bench: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    threads: Any = None
    output: str | None = None


Config = TypeVar("Config", RunConfig, BenchConfig)

# The first entry of a configuration's defaults list, which Hydra finds by name in every composition.
ConfigStore.instance().store(name="schema", node=RunConfig)


def resolve(config: DictConfig, schema: type[Config] = RunConfig) -> Config:  # type: ignore[assignment]
    """Make a composed configuration an instance of its schema, with interpolations and `model.pretrained=null` resolved.

    Raises ConfigError if a value that must be given is missing.
    """
    if missing := list(_missing(OmegaConf.to_container(config, resolve=False))):
        raise ConfigError(f"{', '.join(missing)} must be given: add {' '.join(f'{key}=…' for key in missing)}")
    made = typing.cast(Config, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), config)))
    if made.model.pretrained is None:
        made.model.pretrained = made.model.path is not None
    return made


def as_plain(config: RunConfig | BenchConfig) -> Plain:
    """Return a copy of the configuration as dictionaries, lists, numbers and strings: what config.yaml holds."""
    return asdict(config, dict_factory=lambda items: {k: v.name if isinstance(v, Enum) else v for k, v in items})


def check_bounds(node: Any, prefix: str = "") -> None:
    """Raise ConfigError for a number of the configuration that is outside its bounds."""
    for each in fields(node):
        key, value, bounds = f"{prefix}{each.name}", getattr(node, each.name), each.metadata.get("bounds")
        if is_dataclass(value):
            check_bounds(value, f"{key}.")
        elif bounds and value is not None and not bounds[0] <= value <= bounds[1]:
            shown = shorten(str(value), 80, placeholder="…")
            raise ConfigError(f"{key}={shown} must be {bounds[0]} or more, at most {bounds[1]}")


def parse_size(text: str, key: str) -> tuple[float, str]:
    """Read a size of the packed model as (bytes, "bytes"); for `quantization.budget` also a mean width as (bits, "bits").

    Raises:
        ConfigError: it is not a positive number with one of the units.

    >>> parse_size("6MiB", "gate.bytes"), parse_size("2.5bits", "quantization.budget")
    ((6291456.0, 'bytes'), (2.5, 'bits'))
    """
    width = "" if key == "gate.bytes" else ", or a mean width of its weights, such as 2.5bits"
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", text.strip())
    if not found or found[2] not in UNITS or float(found[1]) == 0 or (found[2] == "bits" and not width):
        raise ConfigError(f"{key}={text!r} must be a size of the packed model, such as 6MiB or 800KB{width}")
    return float(found[1]) * UNITS[found[2]], "bits" if found[2] == "bits" else "bytes"


def _missing(node: Any, key: str = "") -> Iterator[str]:
    """Keys whose value is `???`, found without following interpolations: those that point to a missing value would raise."""
    if isinstance(node, dict):
        for name, child in node.items():
            yield from _missing(child, f"{key}.{name}" if key else str(name))
    elif node == "???":
        yield key
