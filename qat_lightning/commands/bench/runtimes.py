"""Write one architecture in each form that can be run: the float32 model and the student of a run."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from qat_lightning.commands.bench.shapes import random_batch
from qat_lightning.config.builders.models import build_quantized, described
from qat_lightning.config.schema import BenchConfig, ConfigError
from qat_lightning.exporters.onnx.exporter import export_onnx
from qat_lightning.exporters.onnx.runtime import OnnxModel
from qat_lightning.exporters.packed.reader import load_packed
from qat_lightning.exporters.packed.writer import write_packed
from qat_lightning.models.module_paths import family
from qat_lightning.models.quantized_model import calibrate

TORCH, BASELINE, INT8 = "torch float32", "onnxruntime float32", "onnxruntime int8"
PACKED, ONNX = "torch packed", "onnxruntime packed"

CLASSES = 2
CALIBRATION = (8, 16)
"""Rows and tokens of the batch for calibrating static scales; its content does not affect the time."""


@dataclass(frozen=True)
class Runtime:
    """A form of the model that is timed.

    Args:
        path: the file or folder that it is loaded from.
        load: returns a module that is called as `model(**batch)["logits"]`.
        reference: the runtime whose logits it approximates.
    """

    path: Path
    load: Callable[[], nn.Module]
    reference: str | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all its files."""
        files = self.path.rglob("*") if self.path.is_dir() else [self.path]
        return sum(file.stat().st_size for file in files if file.is_file())


def build_teacher(config: BenchConfig) -> PreTrainedModel:
    """Build the configured architecture with a classifier and random weights; nothing is downloaded.

    Raises:
        ConfigError: a decoder.
    """
    torch.manual_seed(0)
    architecture = described(config.model, num_labels=CLASSES)
    images = type(architecture) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    auto: Any = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    teacher = auto.from_config(architecture, trust_remote_code=False)
    if family(teacher).causal:
        raise ConfigError(
            f"a {architecture.model_type} model generates token by token, and this benchmark is for encoders:"
            " set model=bert_base, roberta_base, vit_base or another encoder"
        )
    return teacher.eval()


def build_calibrated(config: BenchConfig, teacher: PreTrainedModel) -> nn.Module:
    """Return a quantized copy, calibrated on random inputs."""
    student = build_quantized(config, copy.deepcopy(teacher))
    calibrate(student, [random_batch(teacher, CALIBRATION)])
    return student.eval()


def write_runtimes(teacher: PreTrainedModel, student: nn.Module, folder: Path, threads: int) -> dict[str, Runtime]:
    """Write every form into `folder`.

    Args:
        threads: number of threads of onnxruntime's sessions.

    Raises:
        ValueError: the student cannot be exported.
    """
    batch = random_batch(teacher, CALIBRATION)
    full, float32, int8, packed, onnx = (
        folder / name for name in ("float32", "float32.onnx", "int8.onnx", "packed", "student.onnx")
    )
    with _without_progress_bars():
        teacher.save_pretrained(full)
    export_onnx(teacher, float32, batch)
    _quantize_dynamically(float32, int8)
    write_packed(student, packed)
    export_onnx(student, onnx, batch)
    return {
        TORCH: Runtime(full, partial(_load_plain, type(teacher), full)),
        BASELINE: Runtime(float32, partial(OnnxModel, float32, threads), TORCH),
        INT8: Runtime(int8, partial(OnnxModel, int8, threads), TORCH),
        PACKED: Runtime(packed, partial(load_packed, packed)),
        ONNX: Runtime(onnx, partial(OnnxModel, onnx, threads), PACKED),
    }


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the model's logits for a batch."""
    with torch.inference_mode():
        return model(**batch)["logits"]


def _load_plain(kind: type[PreTrainedModel], folder: Path) -> nn.Module:
    """Load as a user of transformers does, in float32 and with the default attention."""
    with _without_progress_bars():
        return kind.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True).eval()


def _quantize_dynamically(float32: Path, int8: Path) -> None:
    """Apply onnxruntime's dynamic quantization with its defaults: int8 weights, one scale for each matrix."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    model = onnx.load(float32)
    # The quantizer replaces a Gemm with a transposed weight by a MatMul, whose shape then contradicts the exporter's
    # recorded one; it infers missing shapes itself.
    del model.graph.value_info[:]
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises static quantization
    try:
        quantize_dynamic(model, int8)
    finally:
        logging.disable(before)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
