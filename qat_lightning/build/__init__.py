"""Configuration → objects. Nothing below this floor reads configuration."""

from qat_lightning.build.models import (
    build_data,
    build_model,
    build_quantized,
    build_student,
    described,
    in_teacher_precision,
)
from qat_lightning.build.stages import (
    all_callbacks,
    build_callbacks,
    build_logger,
    build_module,
    build_trainer,
    stage_names,
    stage_settings,
)

__all__ = [
    "all_callbacks",
    "build_callbacks",
    "build_data",
    "build_logger",
    "build_model",
    "build_module",
    "build_quantized",
    "build_student",
    "build_trainer",
    "described",
    "in_teacher_precision",
    "stage_names",
    "stage_settings",
]
