"""Measure the bytes, loading time and speed of a model in float32 and as the exported student of a run."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
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

from qat_lightning.commands.bench.measures import Report, spread, time_interleaved, torch_threads
from qat_lightning.commands.bench.settings import InferenceSettings, label, random_batch, read_settings, shapes_for
from qat_lightning.config.builders.models import build_quantized, described
from qat_lightning.config.schema import BenchConfig, ConfigError, Plain
from qat_lightning.exporters.onnx.exporter import export_onnx
from qat_lightning.exporters.onnx.runtime import OnnxModel
from qat_lightning.exporters.packed.reader import load_packed
from qat_lightning.exporters.packed.writer import write_packed
from qat_lightning.models.module_paths import family
from qat_lightning.models.quantized_model import calibrate
from qat_lightning.models.size import bits

TORCH, BASELINE, INT8 = "torch float32", "onnxruntime float32", "onnxruntime int8"
PACKED, ONNX = "torch packed", "onnxruntime packed"
CALIBRATION = (8, 16)
"""Rows and tokens of the batch for calibrating static scales; its content does not affect the time."""


@dataclass(frozen=True)
class Runtime:
    """A timed form of the model, which `load` reads from `path`; it approximates the logits of the runtime `reference`."""

    path: Path
    load: Callable[[], nn.Module]
    reference: str | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.stat().st_size for file in (self.path, *self.path.rglob("*")) if file.is_file())


def measure_inference(config: BenchConfig, report: Report) -> Plain:
    """Measure each runtime in this process, on the same inputs. Each round of timing has all shapes and runtimes.

    Returns: {"model", "baseline", "threads", …, "runtimes": {name: {"bytes", "ratio", "load", "difference", "speed": {shape:
    {"seconds", "speedup"}}}}}
    """
    settings = read_settings(InferenceSettings, config.bench)
    with torch_threads(config.threads), TemporaryDirectory(prefix="qat_lightning_bench_") as folder:
        report("building and exporting …")
        teacher = build_teacher(config)
        shapes = shapes_for(teacher, settings.shapes)
        student = build_calibrated(config, teacher)
        runtimes = write_runtimes(teacher, student, Path(folder), config.threads)
        batches = {shape: random_batch(teacher, shape, seed=1) for shape in shapes}
        parameters = sum(parameter.numel() for parameter in teacher.parameters())
        model = {"family": teacher.config.model_type, "parameters": parameters, "bits": bits(student)}
        del teacher, student
        report("loading …")
        loading = {name: runtime.load for name, runtime in runtimes.items()}
        loads = time_interleaved(loading, settings.loads, warmup=1, untimed=0)
        models = {name: load() for name, load in loading.items()}
        answers = {
            name: torch.cat([logits(each, batch) for batch in batches.values()]) for name, each in models.items()
        }
        calls = {
            (shape, name): partial(logits, each, batch)
            for shape, batch in batches.items()
            for name, each in models.items()
        }
        seconds = time_interleaved(calls, settings.repeats, settings.warmup, report=report)
        speeds = {key: spread(each) for key, each in seconds.items()}
        rows = {
            name: {
                "bytes": runtime.bytes,
                "ratio": runtimes[BASELINE].bytes / runtime.bytes,
                "load": spread(loads[name]),
                "difference": (other := runtime.reference)
                and {
                    "from": other,
                    "largest": float((answers[name] - answers[other]).abs().max()),
                    "of_logits_up_to": float(answers[other].abs().max()),
                },
                "speed": {
                    label(shape): {
                        "seconds": speeds[shape, name],
                        "speedup": speeds[shape, BASELINE]["median"] / speeds[shape, name]["median"],
                    }
                    for shape in batches
                },
            }
            for name, runtime in runtimes.items()
        }
    counts = {name: config.bench[name] for name in ("repeats", "warmup", "loads")}
    return {"model": model, "baseline": BASELINE, "threads": config.threads, **counts, "runtimes": rows}


def build_teacher(config: BenchConfig) -> PreTrainedModel:
    """Build the configured architecture with a classifier and random weights; ConfigError for a decoder."""
    torch.manual_seed(0)
    architecture = described(config.model, num_labels=2)
    images = type(architecture) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    auto: Any = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    teacher = auto.from_config(architecture, trust_remote_code=False)
    if family(teacher).causal:
        raise ConfigError(f"a {architecture.model_type} model is a decoder: set model=bert_base or another encoder")
    return teacher.eval()


def build_calibrated(config: BenchConfig, teacher: PreTrainedModel) -> nn.Module:
    """Return a quantized copy, calibrated on random inputs."""
    student = build_quantized(config, copy.deepcopy(teacher))
    calibrate(student, [random_batch(teacher, CALIBRATION)])
    return student.eval()


def write_runtimes(teacher: PreTrainedModel, student: nn.Module, folder: Path, threads: int) -> dict[str, Runtime]:
    """Write every form into `folder`; onnxruntime's sessions have so many threads."""
    transformers_logging.disable_progress_bar()
    batch = random_batch(teacher, CALIBRATION)
    full, float32, int8, packed, onnx = (
        folder / name for name in ("float32", "float32.onnx", "int8.onnx", "packed", "student.onnx")
    )
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
